// Package command reads the command lines of what the program nmi can do instead of
// serving pods, and says how such a command ends.
//
// All of them speak in words for a person, and can be repeated. The package
// must not know any of them.
package command

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"
)

// Exit codes of all commands.
const (
	CodeDone  = 0 // all is as the command wants it, as far as can be known
	CodeError = 1 // something failed, and can be tried again
	CodeUsage = 2 // the command line cannot be read
	CodeLeft  = 3 // done, but for something that somebody must look after
)

// Line is what there is to know of a command's line.
type Line struct {
	Name, Summary, Help string
	// About goes before the list of flags.
	About string
	// Flags adds the command's flags.
	Flags func(*pflag.FlagSet)
	// Check looks at what they were set to.
	Check func() error
}

// Read reads the arguments after the command's name. It returns false, and the exit
// code of the process, if there is nothing to run: help was asked for, or a mistake
// is said.
func (l Line) Read(args []string, stderr io.Writer) (code int, run bool) {
	flags := pflag.NewFlagSet("nmi "+l.Name, pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.Usage = func() {
		Sayf(stderr, "nmi %s: %s\n\n%s\n\n%s:\n%s", l.Name, l.Summary, l.Help, l.About, flags.FlagUsages())
	}
	l.Flags(flags)
	err := flags.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return CodeDone, false
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if err == nil {
		err = l.Check()
	}
	if err != nil {
		Sayf(stderr, "reading the flags: %v (nmi %s --help lists them)\n", err, l.Name)
		return CodeUsage, false
	}
	return CodeDone, true
}

// Sayf writes to the person who called the program. If that fails there is nowhere
// else to complain.
func Sayf(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format, args...)
}
