// Package leave decides what an agent that ends leaves on its node: its rules,
// unless no agent will come any more, which the package owner finds out.
//
// It takes the rules away and says how that went by the functions that it is
// given. It must not know what rules are.
package leave

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/client-go/rest"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/leave/owner"
)

// Timeout bounds all that is done here. With the time to drain it is well within a
// pod's grace period.
const Timeout = 5 * time.Second

// Options are what an agent that ends has to do it with.
type Options struct {
	// Config has the agent's own rights.
	Config *rest.Config
	// Pod is the agent's own; the zero key if it is in none, and the rules stay.
	Pod identity.Key
	// Remove takes the rules from the node. What it returns is said to the log, as
	// keys and values.
	Remove func(context.Context) (removed []any, err error)
	// Report says how the node was left to whoever waits for it; nil if nobody does.
	Report func(ctx context.Context, reason v1.Reason, message string) error
	Log    *slog.Logger
}

// Run takes the rules from the node if no agent will come any more. If that is not
// known they stay: without them every pod has the node's own identity. That it
// could not be reported changes nothing of it.
func Run(ctx context.Context, o Options) {
	if o.Pod == (identity.Key{}) {
		o.Log.Info("ended, the redirect's rules stay")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	set, err := owner.Find(ctx, o.Config, o.Pod)
	switch {
	case err != nil:
		o.Log.Warn("ended, the redirect's rules stay: it is not known whether the DaemonSet is deleted; nmi cleanup removes them", "error", err)
	case !set.Gone:
		o.Log.Info("ended, the redirect's rules stay", "daemonSet", set.String())
	default:
		o.remove(ctx, set)
	}
}

func (o Options) remove(ctx context.Context, set owner.DaemonSet) {
	removed, err := o.Remove(ctx)
	if err != nil {
		o.Log.Error("ended, the redirect's rules are not all gone: nmi cleanup removes them", "error", err)
		o.report(ctx, v1.ReasonRulesLeft, "the agent has ended and could not remove all of its rules, nmi cleanup does: "+err.Error())
		return
	}
	o.Log.Info("ended, the redirect's rules are removed: the DaemonSet is deleted", append([]any{"daemonSet", set.String()}, removed...)...)
	o.report(ctx, v1.ReasonRulesRemoved, "the agent has ended and removed its rules: its DaemonSet is deleted")
}

func (o Options) report(ctx context.Context, reason v1.Reason, message string) {
	if o.Report == nil {
		return
	}
	if err := o.Report(ctx, reason, message); err != nil {
		o.Log.Warn("node report does not say how the node was left", "error", err)
	}
}
