package attachment

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// pass is one reconciliation of one resource.
type pass struct {
	*Reconciler
	ref    compute.Ref
	record *v1.AzureIdentityAttachment

	needs       []observe.Need      // nil: to be read again
	seen        *compute.Identities // nil: not known
	seenAt      time.Time
	remembered  bool // seen is of a pass before
	quarantine  quarantine.State
	unconfirmed map[armid.ID][]string
	operation   *v1.ARMOperation
	underway    bool // a patch is about to be sent
	wait        bool
	keepOff     *metav1.Time             // until when ARM asked to wait
	keepScope   v1.RetryScope            // with what
	paused      time.Duration            // when to come back, since a pause has not ended
	unasked     bool                     // a request was not sent, to keep under ARM's limits
	busy        bool                     // ARM has said that somebody else's operation runs
	inUse       bool                     // pods need identities of it, or some of it are ours
	again       time.Time                // when a refused identity is to be tried; zero: never
	gone        bool                     // ARM does not know the resource
	said        *plan.Plan               // what was reported last; nil: nothing was seen
	named       map[armid.ID]plan.Naming // as said was decided by
	failure     error                    // ARM's; it is reported
}

// newPass takes up what the passes before have written.
func (r *Reconciler) newPass(ref compute.Ref, record *v1.AzureIdentityAttachment, needs []observe.Need) *pass {
	p := &pass{Reconciler: r, ref: ref, record: record, needs: needs, quarantine: quarantine.Parse(record.Status), unconfirmed: report.Unconfirmed(record.Status)}
	p.recall()
	return p
}

// snapshot is what a plan of the resource depends on, as far as it is known now.
func (p *pass) snapshot(ctx context.Context, needs []observe.Need) (plan.Snapshot, error) {
	wanted := observe.Wanted(needs)
	named, err := p.observe.Named(ctx, slices.AppendSeq(slices.Clone(wanted), maps.Keys(p.quarantine.Refused)))
	if err != nil {
		return plan.Snapshot{}, err
	}
	p.inUse = len(wanted)+len(p.record.Spec.Owned) > 0
	return plan.Snapshot{
		Seen: *p.seen, Wanted: wanted, Named: named, Quarantine: p.quarantine, Unconfirmed: p.unconfirmed,
		Records: p.record.Spec.Owned, Now: p.options.Now(),
	}, nil
}

// converge sends patches until there is nothing to do. It returns what is wrong
// in the cluster; what is wrong with ARM is kept in failure.
func (p *pass) converge(ctx context.Context) error {
	// There is a record before anything can go wrong, to say so.
	if err := p.apply.Record(ctx, p.record, p.record.Spec.Owned); err != nil {
		return err
	}
	if more, err := p.resume(ctx); err != nil || !more {
		return err
	}
	for range maxPasses {
		watchdog.Step(ctx)
		if more, err := p.step(ctx); err != nil || !more {
			return err
		}
	}
	p.wait = true
	return nil
}

// step looks, plans, and sends what is to be sent. It returns whether there may
// be more to do.
func (p *pass) step(ctx context.Context) (more bool, err error) {
	if p.seen == nil && !p.look(ctx) {
		return false, nil
	}
	planned, err := p.plan(ctx)
	if err != nil {
		return false, err
	}
	if planned.Patch != nil && p.remembered {
		p.seen = nil // to leave things alone it was good enough
		return true, nil
	}
	p.wait, p.again, p.quarantine, p.unconfirmed = planned.Wait, planned.Again, planned.Quarantine, planned.Unconfirmed
	if planned.Patch == nil {
		return false, p.apply.Record(ctx, p.record, planned.Records)
	}
	return p.patch(ctx, planned)
}

// look asks ARM what is there.
func (p *pass) look(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	p.needs = nil
	seen, err := p.arm.Get(ctx, p.ref)
	if err != nil && !p.keptBack(err) {
		var notFound *armclient.NotFoundError
		p.failure, p.gone = err, errors.As(err, &notFound)
	}
	if err != nil {
		return false
	}
	p.show(seen)
	return true
}

// needed returns the assignments, with those that came while ARM was at work.
func (p *pass) needed(ctx context.Context) (needs []observe.Need, err error) {
	if p.needs == nil {
		p.needs, err = p.observe.Needs(ctx, p.ref)
	}
	return p.needs, err
}

func (p *pass) plan(ctx context.Context) (plan.Plan, error) {
	needs, err := p.needed(ctx)
	if err != nil {
		return plan.Plan{}, err
	}
	snapshot, err := p.snapshot(ctx, needs)
	if err != nil {
		return plan.Plan{}, err
	}
	return plan.Compute(snapshot, p.policy()), nil
}

// patch records and sends one patch, and follows it as far as it goes without
// waiting. It returns whether to go on.
func (p *pass) patch(ctx context.Context, planned plan.Plan) (more bool, err error) {
	if !p.mayPatch() {
		return false, nil
	}
	if err := p.apply.Record(ctx, p.record, planned.Before); err != nil {
		return false, err
	}
	// Pods whose identity is there already do not wait for the others'.
	p.operation = &v1.ARMOperation{StartTime: metav1.NewTime(p.options.Now()), Result: v1.OperationRunning}
	p.underway = true
	err = p.say(ctx)
	p.underway = false
	if err != nil && !outdated(err) {
		return false, err
	}
	log.FromContext(ctx).Info("patching identities", "add", len(planned.Patch.Add), "remove", len(planned.Patch.Remove))
	failure, err := p.send(ctx, planned.Patch)
	if err != nil {
		return false, err
	}
	if failure == nil {
		return p.follow(ctx)
	}
	if _, ok := errors.AsType[*armclient.NotStartedError](failure); ok {
		if err := p.apply.Record(ctx, p.record, planned.Undo()); err != nil {
			return false, err
		}
	}
	if p.keptBack(failure) {
		return false, nil
	}
	return p.recover(ctx, planned.Patch.Add, failure)
}

// recover goes on without the identities that ARM refuses, and with a fresh look
// where somebody else was faster. Everything else ends the pass.
func (p *pass) recover(ctx context.Context, batch []armid.ID, failure error) (more bool, err error) {
	if bad, ok := errors.AsType[*armclient.BadIdentitiesError](failure); ok {
		err := p.refuse(ctx, batch, bad)
		if _, untouched := errors.AsType[*armclient.NotStartedError](failure); !untouched {
			p.seen = nil
		}
		return err == nil, err
	}
	if _, ok := errors.AsType[*armclient.PreconditionFailedError](failure); ok {
		p.seen = nil
		return true, nil
	}
	p.failure = failure
	return false, nil
}

// say reports how things stand.
func (p *pass) say(ctx context.Context) error {
	needs, err := p.needed(ctx)
	if err != nil {
		return err
	}
	outcome := report.Outcome{
		Record: p.record, Needs: needs, Wrote: func(shown *v1.AzureAssignedIdentity) { p.observe.Wrote(p.ref, shown) }, Seen: p.seen, Quarantine: p.quarantine, Unconfirmed: p.unconfirmed, Err: p.failure,
		Underway: p.underway, Unasked: p.unasked && p.failure == nil, Operation: p.operation, RetryAfter: p.keepOff, RetryScope: p.keepScope,
	}
	p.said = nil
	if p.seen != nil {
		snapshot, err := p.snapshot(ctx, needs)
		if err != nil {
			return err
		}
		planned := plan.Compute(snapshot, p.policy())
		p.said, p.named = &planned, snapshot.Named
		outcome.There, outcome.Pending, outcome.Estranged = planned.There, planned.Pending, planned.Estranged
	}
	return p.report.Report(ctx, outcome)
}

// result reports the end of a pass and says when to come back.
func (p *pass) result(ctx context.Context, failure error) (reconcile.Result, error) {
	if forgotten, err := p.forget(ctx); forgotten || err != nil {
		return reconcile.Result{}, err
	}
	errSay := p.say(ctx)
	switch {
	case outdated(errSay), outdated(failure):
		// Something changed meanwhile; its event may have come before ours.
		return reconcile.Result{RequeueAfter: cacheLag}, nil
	case p.paused > 0:
		return reconcile.Result{RequeueAfter: p.paused}, errSay
	case failure != nil && report.RetryAfter(failure) > 0:
		log.FromContext(ctx).Info("ARM asks to wait", "after", report.RetryAfter(failure).String(), obs.KeyReason, failure.Error())
		return reconcile.Result{RequeueAfter: report.RetryAfter(failure)}, errSay
	case isDeleting(failure):
		return reconcile.Result{RequeueAfter: p.options.RetryMax}, errSay // it is said; nothing else is to be done
	case failure != nil || errSay != nil:
		return reconcile.Result{}, errors.Join(failure, errSay)
	}
	rest := p.rest()
	p.settle(rest)
	return reconcile.Result{RequeueAfter: rest}, nil
}

// forget drops the record of a resource that ARM does not know and no pod needs.
func (p *pass) forget(ctx context.Context) (forgotten bool, err error) {
	if !p.gone {
		return false, nil
	}
	needs, err := p.needed(ctx)
	if err != nil || len(needs) > 0 {
		return false, err
	}
	return true, p.apply.Forget(ctx, p.record)
}

// outdated reports whether a write failed because its object had changed.
func outdated(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, failure := range joined.Unwrap() {
			if !outdated(failure) {
				return false
			}
		}
		return true
	}
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}
