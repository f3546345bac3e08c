// Package attachment brings the identities of a virtual machine or scale set to
// what its pods need: observe, plan, apply, report. Its key is one resource, so
// that ARM sees one writer of each, and a slow one holds up no other.
//
// It wires the stages and must not grow rules of its own: what to do is plan's,
// what to say is report's.
package attachment

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/apply"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

const (
	// readTimeout bounds one GET, the controller's own token included.
	readTimeout = time.Minute
	// longestStep is far above one look with its plan, and one request.
	longestStep = 5 * readTimeout
	// maxPasses bounds the requests of one reconciliation; what is left comes in
	// the next.
	maxPasses = 20
	// lookAgain is when a resource is looked at whose operation still runs.
	lookAgain = 5 * time.Second
	// cacheLag is how long the cache is given to see a write.
	cacheLag = 200 * time.Millisecond
)

// ARM reads and changes the identities of a resource. Failures are those of
// package armclient.
type ARM interface {
	Get(ctx context.Context, ref compute.Ref) (compute.Identities, error)
	// KeepOff keeps every request in the resource's subscription back.
	KeepOff(ref compute.Ref, after time.Duration)
	apply.ARM
}

// Options are what a [Reconciler] works with. Client, Live, Events, ARM and
// Namespace are needed.
type Options struct {
	Client client.Client
	// Shared, if set, is of the Client's cache.
	Shared *kube.Shared
	// Live reads from the API server itself.
	Live   client.Reader
	Events *events.Recorder
	ARM    ARM
	// Namespace is the controller's own.
	Namespace string
	// Policy, if set, says what is never removed, at the time of asking.
	Policy func() plan.Policy
	// Watchdog, if set, watches every resource that is worked on.
	Watchdog *watchdog.Watchdog
	// GatherWindow is how long the first event for a resource waits for others
	// to join its request; zero does not wait.
	GatherWindow time.Duration
	// RetryMin and RetryMax bound the backoff after a failure; zero is 1 s and 5
	// minutes.
	RetryMin, RetryMax time.Duration
	// PollInterval is how often a running operation is asked for where ARM does not
	// say; zero is 5 s.
	PollInterval time.Duration
	// OperationTimeout is how long an operation is asked for; zero is 30 minutes.
	// Azure has been seen to take 17. One that takes longer goes on by itself, and
	// its resource is looked at instead.
	OperationTimeout time.Duration
	// QuarantineMin and QuarantineMax bound how long an identity waits that ARM
	// refused; zero is 30 s and 10 minutes.
	QuarantineMin, QuarantineMax time.Duration
	// ReconcileInterval is how often a resource in use is looked at without a cause, to
	// mend what somebody else changed; zero is never.
	ReconcileInterval time.Duration
	// Adopt takes over what the old controller attached.
	Adopt bool
	// Assigned, if set, is told how long an assignment took from its creation, and
	// from the time that its pod was scheduled; that is zero where it is not known.
	Assigned func(took, scheduled time.Duration)
	// Now and Random, a number from 0 up to 1, are the clock and chance; nil for
	// the real ones.
	Now    func() time.Time
	Random func() float64
}

// Reconciler brings one resource at a time to what its pods need.
type Reconciler struct {
	observe *observe.Observer
	apply   apply.Applier
	report  report.Reporter
	arm     ARM
	policy  func() plan.Policy
	lookup  kube.Lookup
	options Options
	holds   holds
	waits   waits
	pauses  pauses
	views   *views
	places  *places
	adopted chan struct{} // closed when there is nothing more to adopt
}

// NewReconciler returns a Reconciler.
func NewReconciler(o Options) *Reconciler {
	o = o.withDefaults()
	lookup := kube.Lookup{Reader: o.Client, Shared: o.Shared}
	r := &Reconciler{
		observe: &observe.Observer{Lookup: lookup, Live: o.Live, Namespace: o.Namespace},
		apply:   apply.Applier{Client: o.Client, ARM: o.ARM},
		report:  report.Reporter{Client: o.Client, Events: o.Events, Assigned: tell(lookup, o)},
		arm:     o.ARM, policy: o.Policy, lookup: lookup, options: o, views: newViews(o.ReconcileInterval), places: newPlaces(), adopted: make(chan struct{}),
	}
	if !o.Adopt {
		close(r.adopted)
	}
	return r
}

func (o Options) withDefaults() Options {
	o.RetryMin, o.RetryMax = cmp.Or(o.RetryMin, time.Second), cmp.Or(o.RetryMax, 5*time.Minute)
	o.PollInterval, o.OperationTimeout = cmp.Or(o.PollInterval, 5*time.Second), cmp.Or(o.OperationTimeout, 30*time.Minute)
	o.QuarantineMin, o.QuarantineMax = cmp.Or(o.QuarantineMin, 30*time.Second), cmp.Or(o.QuarantineMax, 10*time.Minute)
	if o.Policy == nil {
		o.Policy = func() plan.Policy { return plan.Policy{} }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return o
}

// Reconcile works on one resource until it carries what its pods need, or
// something stands in the way. What stands in the way is reported, and tried
// again: when ARM says, or with backoff.
func (r *Reconciler) Reconcile(ctx context.Context, ref compute.Ref) (reconcile.Result, error) {
	if err := r.keepWaits(ctx); err != nil {
		return reconcile.Result{}, err
	}
	record, err := r.observe.Record(ctx, ref)
	if err != nil {
		return reconcile.Result{}, err
	}
	needs, err := r.observe.Needs(ctx, ref)
	if err != nil {
		return reconcile.Result{}, err
	}
	if len(needs) == 0 && record.UID == "" {
		return reconcile.Result{}, nil // nothing to attach, nothing to remove
	}
	p := r.newPass(ref, record, needs)
	if p.failure = p.held(); p.failure != nil {
		return p.result(ctx, p.failure) // new pods are told; ARM is left alone
	}
	if err := p.converge(ctx); err != nil {
		r.views.forget(ref)
		return p.result(ctx, err)
	}
	p.hold()
	p.remember()
	return p.result(ctx, p.failure)
}

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
	keepOff     *metav1.Time  // until when ARM asked to wait
	keepScope   v1.RetryScope // with what
	paused      time.Duration // when to come back, since a pause has not ended
	unasked     bool          // a request was not sent, to keep under ARM's limits
	busy        bool          // ARM has said that somebody else's operation runs
	inUse       bool          // pods need identities of it, or some of it are ours
	again       time.Time     // when a refused identity is to be tried; zero: never
	gone        bool          // ARM does not know the resource
	failure     error         // ARM's; it is reported
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
	if p.seen != nil {
		snapshot, err := p.snapshot(ctx, needs)
		if err != nil {
			return err
		}
		planned := plan.Compute(snapshot, p.policy())
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
	return reconcile.Result{RequeueAfter: p.rest()}, nil
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
