package command_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
)

func TestRead(t *testing.T) {
	for name, test := range map[string]struct {
		args string
		code int
		run  bool
		says string
	}{
		"nothing":         {"", command.CodeDone, true, ""},
		"a flag":          {"--speed=2", command.CodeDone, true, ""},
		"help":            {"--help", command.CodeDone, false, "nmi dance: moves\n\nIt moves.\n\nFlags, or none:\n      --speed int   how fast"},
		"an unknown flag": {"--foo", command.CodeUsage, false, "reading the flags: unknown flag: --foo (nmi dance --help lists them)\n"},
		"an argument":     {"now --speed=2", command.CodeUsage, false, `reading the flags: unknown argument "now" (nmi dance`},
		"a wrong value":   {"--speed=0", command.CodeUsage, false, "reading the flags: --speed is 0 (nmi dance --help lists them)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			speed := 0
			var said bytes.Buffer
			line := command.Line{
				Name: "dance", Summary: "moves", Help: "It moves.", About: "Flags, or none",
				Flags: func(f *pflag.FlagSet) { f.IntVar(&speed, "speed", 1, "how fast") },
				Check: func() error {
					if speed == 0 {
						return errors.New("--speed is 0")
					}
					return nil
				},
			}
			code, run := line.Read(strings.Fields(test.args), &said)
			if code != test.code || run != test.run || !strings.Contains(said.String(), test.says) || (test.says == "") != (said.Len() == 0) {
				t.Errorf("got %d, %t and %q, want %d, %t and %q", code, run, said.String(), test.code, test.run, test.says)
			}
		})
	}
}
