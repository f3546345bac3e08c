package attachment

import (
	"context"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

// settled is how a whole pass has left a resource to which nothing is to be done.
// For as long as what it was decided by stays the same, the next pass has to look
// at the assignments only that have changed, and if those need nothing either, at
// nothing else. More than to leave things alone is never decided by it: before
// anything is written, a whole pass reads the record from the API server itself.
type settled struct {
	record string            // the version of the record
	there  map[armid.ID]bool // what pods need, which is all usable
	back   time.Time         // when to look without a cause; zero is never
}

// settle keeps how the pass leaves the resource, if it is all as it should be.
func (p *pass) settle(rest time.Duration) {
	if !p.isSettled() {
		return
	}
	out := &settled{record: p.record.ResourceVersion, there: make(map[armid.ID]bool, len(p.said.There))}
	for _, id := range p.said.There {
		out.there[id] = true
	}
	if rest > 0 {
		out.back = p.options.Now().Add(rest)
	}
	p.views.settle(p.ref, out)
}

// isSettled reports whether nothing is to be done, waited for or tried again.
func (p *pass) isSettled() bool {
	waits := p.wait || p.paused > 0 || !p.again.IsZero() || p.keepOff != nil
	troubled := p.failure != nil || len(p.quarantine.Refused)+len(p.quarantine.Unsure)+len(p.unconfirmed) > 0
	return !waits && !troubled && p.record.UID != "" && p.said != nil && complete(*p.said)
}

// complete reports whether a plan finds all as it should be.
func complete(p plan.Plan) bool {
	return p.Patch == nil && len(p.Pending)+len(p.Estranged) == 0
}

// quiet reports whether the resource is as the last whole pass left it, and what
// has changed since needs nothing; and when to come back.
func (r *Reconciler) quiet(ctx context.Context, ref compute.Ref) (rest time.Duration, quiet bool, err error) {
	now := r.options.Now()
	if _, remembered := r.views.of(ref, now); !remembered {
		r.observe.Doubt(ref) // with ARM, the cluster is looked at anew, too
	}
	last := r.views.unsettle(ref)
	if last == nil {
		return 0, false, nil
	}
	record, err := r.lookup.Attachment(ctx, client.ObjectKey{Namespace: r.options.Namespace, Name: observe.RecordName(ref)})
	if err != nil || record == nil || record.ResourceVersion != last.record {
		return 0, false, err
	}
	changes, known, err := r.observe.Changes(ctx, ref)
	if err != nil || !known || !last.covers(changes) {
		return 0, false, err
	}
	r.views.settle(ref, last)
	if !last.back.IsZero() {
		rest = max(last.back.Sub(now), cacheLag)
	}
	return rest, true, nil
}

// covers reports whether the changes leave nothing to do or to say.
func (s *settled) covers(changes observe.Changes) bool {
	for _, need := range changes.Needs {
		if need.Behind || !s.there[need.ID] || !report.SaysThere(need.Assignment) {
			return false
		}
	}
	return len(changes.Unneeded) == 0
}
