package upkeep

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/keeper"
)

// redirectOnly is the command that closes a node to pods before there is an agent.
func redirectOnly() tool {
	return tool{
		name:    "redirect-only",
		summary: "puts the redirect in place without serving: pods are refused rather than let through",
		help: `For the time in which AAD Pod Identity v1.8.17 is replaced: its agent takes its rules away when it ends,
and until the next one is there every pod would have the node's own identity. With these rules in place, the
old agent goes on serving pods while it runs, and nobody does when it has ended. NMI takes them over.
nmi cleanup removes them.

Exit code: 0 if pods are kept from the node's metadata service, 1 after an error, 2 for a command line that
cannot be read.`,
		flags: func(i *invocation, f *pflag.FlagSet) {
			f.BoolVar(&i.keep, "keep", false, "do not end: repair the rules, and take new links in, until told to end by SIGTERM; the rules stay")
		},
		run: runRedirectOnly,
	}
}

func runRedirectOnly(ctx context.Context, i *invocation) int {
	datapath := yielding{i.datapath}
	var err error
	if i.keep {
		err = keeper.Run(ctx, keeper.Options{
			Datapath: datapath, Watcher: i.datapath,
			Ready: func() {
				if err := i.tellState(ctx); err != nil { // damaged already, which the watch reports
					command.Sayf(i.stderr, "nmi redirect-only: %v\n", err)
				}
			},
			Changed: func(change redirect.Change) {
				if change.Rules || change.OwnLink != "" {
					command.Sayf(i.stdout, "put right: %s\n", change.Why())
				}
			},
			Failed: func(err error) { command.Sayf(i.stderr, "nmi redirect-only: %v\n", err) },
		})
	} else if _, err = datapath.Ensure(ctx); err == nil {
		err = i.tellState(ctx)
	}
	if err != nil {
		command.Sayf(i.stderr, "nmi redirect-only: %v\n", err)
		return command.CodeError
	}
	return command.CodeDone
}

// tellState reads the rules back and says whose they are.
func (i *invocation) tellState(ctx context.Context) error {
	err := i.datapath.Verify(ctx)
	if errors.Is(err, redirect.ErrHeld) {
		command.Sayf(i.stdout, "NMI runs on this node and keeps the redirect: there is nothing to do\n")
		return nil
	}
	if err != nil {
		return err
	}
	command.Sayf(i.stdout, "in place: what pods send to %s goes to %s, and is refused while nothing listens there\n", i.config.Metadata, i.config.Target)
	return nil
}

// yielding is a datapath that is content while an agent has taken it over.
type yielding struct{ redirect.Datapath }

// Ensure implements [redirect.Datapath].
func (y yielding) Ensure(ctx context.Context) (redirect.Change, error) {
	change, err := y.Datapath.Ensure(ctx)
	if errors.Is(err, redirect.ErrHeld) {
		err = nil
	}
	return change, err
}
