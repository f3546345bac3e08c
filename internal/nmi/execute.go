package nmi

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel"
	"k8s.io/klog/v2"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/upkeep"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/uninstall"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// Execute runs the agent with a command line, without the program's name, and
// returns the exit code of the process: 0 after a clean end, 1 after an error, 2
// for a command line that cannot be read. A command line that begins with the name
// of a command of the package upkeep, or that of uninstall, runs that instead.
func Execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if code, known := upkeep.Execute(ctx, args, stdout, stderr); known {
		return code
	}
	if len(args) > 0 && args[0] == uninstall.Name {
		return uninstall.Execute(ctx, args[1:], stdout, stderr)
	}
	options := NewOptions()
	flags := pflag.NewFlagSet("nmi", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	options.AddFlags(flags)
	flags.Usage = func() {
		command.Sayf(stderr, "nmi serves the pods of a node. Instead, these do one thing (with --help they say which):\n%s  nmi %-14s %s\n\nFlags:\n%s", upkeep.Summary(), uninstall.Name, uninstall.Summary, flags.FlagUsages())
	}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		command.Sayf(stderr, "reading the flags: %v (nmi --help lists them)\n", err)
		return 2
	case flags.NArg() > 0:
		command.Sayf(stderr, "unknown command %q (nmi --help lists commands and flags)\n", flags.Arg(0))
		return 2
	case options.Version:
		command.Sayf(stdout, "NMI Version: %s\n", obs.Version())
		return 0
	}
	log, err := options.logger()
	if err == nil {
		_, err = options.config() // before anything is changed for the whole process
	}
	if err != nil {
		command.Sayf(stderr, "nmi: reading the flags: %v\n", err)
		return 1
	}
	// What the clients of Kubernetes and of the traces' collector have to say goes
	// the same way.
	options.Logger = log
	klog.SetSlogLogger(log)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces were not sent", "error", err) }))
	if err := Run(ctx, options); err != nil {
		command.Sayf(stderr, "nmi: %v\n", err)
		return 1
	}
	return 0
}
