package attachment

import (
	"context"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

// settled is how a whole pass has left a resource to which nothing is to be done.
// While all that it was decided by stays as it was, another whole pass would come
// to the same, and only the assignments are looked at that have changed since. Of
// those that need what is there, that is said, once the API server itself has
// shown that the record is the same. Whatever else there may be to do, a whole pass
// finds.
type settled struct {
	record string                   // the version of the record
	there  map[armid.ID]plan.Naming // what pods need, which is all usable, and who names it
	back   time.Time                // when to look without a cause; zero is never
}

// settle keeps how the pass leaves the resource, if it is all as it should be.
func (p *pass) settle(rest time.Duration) {
	if !p.isSettled() {
		return
	}
	out := &settled{record: p.record.ResourceVersion, there: make(map[armid.ID]plan.Naming, len(p.said.There))}
	for _, id := range p.said.There {
		out.there[id] = p.named[id]
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

// brief does what is to be done to a resource that is as the last whole pass left
// it, and reports whether that is all.
func (r *Reconciler) brief(ctx context.Context, ref compute.Ref) (result reconcile.Result, done bool, err error) {
	now := r.options.Now()
	if _, remembered := r.views.of(ref, now); !remembered {
		r.observe.Doubt(ref) // with ARM, the cluster is looked at anew, too
	}
	last := r.views.unsettle(ref)
	if last == nil {
		return reconcile.Result{}, false, nil
	}
	due, covered, err := r.due(ctx, ref, last)
	if err != nil || !covered {
		return reconcile.Result{}, false, err
	}
	if err := r.report.Report(ctx, r.good(ref, due)); outdated(err) {
		return reconcile.Result{RequeueAfter: cacheLag}, true, nil
	} else if err != nil {
		return reconcile.Result{}, false, err
	}
	r.views.settle(ref, last)
	if !last.back.IsZero() {
		result.RequeueAfter = max(last.back.Sub(now), cacheLag)
	}
	return result, true, nil
}

// due returns the needs of which it is to be said that they are met, and whether
// that is all that there is to do.
func (r *Reconciler) due(ctx context.Context, ref compute.Ref, last *settled) (due []observe.Need, covered bool, err error) {
	record, err := r.lookup.Attachment(ctx, client.ObjectKey{Namespace: r.options.Namespace, Name: observe.RecordName(ref)})
	if err != nil || record == nil || record.ResourceVersion != last.record {
		return nil, false, err
	}
	changes, known, err := r.observe.Changes(ctx, ref)
	if err != nil || !known {
		return nil, false, err
	}
	if due, covered = last.covers(changes); !covered {
		return nil, false, nil
	}
	if same, err := r.sameNames(ctx, last, changes.Needs); err != nil || !same {
		return nil, false, err
	}
	if len(due) == 0 {
		return nil, true, nil
	}
	same, err := r.observe.IsRecordAt(ctx, ref, last.record)
	return due, same, err
}

// covers reports whether the changes leave nothing to do but to say of some needs
// that they are met, and of which.
func (s *settled) covers(changes observe.Changes) (due []observe.Need, covered bool) {
	for _, need := range changes.Needs {
		if _, there := s.there[need.ID]; !there || need.Behind {
			return nil, false
		}
		if !report.SaysThere(need.Assignment) {
			due = append(due, need)
		}
	}
	return due, len(changes.Unneeded) == 0
}

// sameNames reports whether the AzureIdentities that name what is needed are as the
// whole pass found them.
func (r *Reconciler) sameNames(ctx context.Context, last *settled, needs []observe.Need) (bool, error) {
	named, err := r.observe.Named(ctx, observe.Wanted(needs))
	if err != nil {
		return false, err
	}
	for id, now := range named {
		if !slices.Equal(now.Objects, last.there[id].Objects) {
			return false, nil
		}
	}
	return true, nil
}

// good is the outcome by which the needs are met.
func (r *Reconciler) good(ref compute.Ref, met []observe.Need) report.Outcome {
	return report.Outcome{
		Needs: met, There: observe.Wanted(met),
		Wrote: func(shown *v1.AzureAssignedIdentity) { r.observe.Wrote(ref, shown) },
	}
}
