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
	"math/rand/v2"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/apply"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
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
	if result, done, err := r.brief(ctx, ref); done || err != nil {
		return result, err
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
