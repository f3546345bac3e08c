package nmi

import (
	"context"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/owner"
)

// leaveTime bounds how long an agent that ends asks whether another one will come.
// With the time to drain it is well within a pod's grace period.
const leaveTime = 5 * time.Second

// leave takes the rules from the node if no agent will come any more. If that is
// not known they stay: without them every pod has the node's own identity.
func (r *runner) leave(ctx context.Context) {
	if r.config.Pod == (identity.Key{}) {
		r.log.Info("ended, the redirect's rules stay")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	set, err := owner.Find(ctx, r.rest, r.config.Pod)
	switch {
	case err != nil:
		r.log.Warn("ended, the redirect's rules stay: it is not known whether the DaemonSet is deleted; nmi cleanup removes them", "error", err)
	case !set.Gone:
		r.log.Info("ended, the redirect's rules stay", "daemonSet", set.String())
	default:
		removed, err := r.redirect.Delete(ctx)
		if err != nil {
			r.log.Error("ended, the redirect's rules are not all gone: nmi cleanup removes them", "error", err)
			return
		}
		r.log.Info("ended, the redirect's rules are removed: the DaemonSet is deleted", "daemonSet", set.String(),
			"tables", removed.Tables, "links", removed.Links, "flows", removed.Flows)
	}
}
