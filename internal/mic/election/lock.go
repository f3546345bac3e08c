// Package election lets one replica of the controller act at a time, beside
// replicas of its own kind and beside controllers of AAD Pod Identity, which know
// another lock.
//
// It must not judge whether a leader lives: that is client-go's, by the time at
// which this replica saw a record change, so that no clock is compared.
package election

import (
	"context"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Options are what a [Lock] works with.
type Options struct {
	// Namespace and Name are of the Lease, and of the Endpoints that are the old
	// controller's lock.
	Namespace, Name string
	// Identity is this replica's own; two replicas never share one.
	Identity string
	Timing   Timing
	// Legacy holds the old controller's lock too.
	Legacy bool
	// Say is told what to say of the Lease, as an Event.
	Say func(lease *corev1.ObjectReference, reason, message string)
	// Waiting is told of an old controller that has to end first, once for each.
	Waiting func(lease *corev1.ObjectReference, holder string)
}

// Lock is the Lease and, beside it, the old controller's lock: who leads holds
// both. The old one is written first, so that whoever loses it writes no Lease.
// It is used by one elector, and not safe for concurrent use.
type Lock struct {
	options Options
	lease   resourcelock.LeaseLock
	legacy  *legacyLock // nil: it does not matter

	seen struct {
		lease, old resourcelock.LeaderElectionRecord
		exists     bool // the Lease does
	}
	blocking, told string // the old controller in the way: at the last look, and of which Waiting knows
}

var _ resourcelock.Interface = (*Lock)(nil)

// New returns a Lock; it sends nothing.
func New(config *rest.Config, o Options) (*Lock, error) {
	config = rest.CopyConfig(config)
	// Neither other requests nor a server that does not answer may cost the lead.
	config.QPS, config.Timeout = -1, o.Timing.Renew/2
	config.WarningHandler = rest.NoWarnings{} // every write would log that Endpoints are deprecated
	leases, err := typedcoordinationv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("preparing the election: %w", err)
	}
	l := &Lock{options: o, lease: resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity, EventRecorder: recorder(o.Say)},
	}}
	if o.Legacy {
		endpoints, err := typedcorev1.NewForConfig(config)
		if err != nil {
			return nil, fmt.Errorf("preparing the old lock: %w", err)
		}
		l.legacy = &legacyLock{client: endpoints, meta: l.lease.LeaseMeta}
	}
	return l, nil
}

// Get returns who leads by both locks, and what says so. One that does not exist
// is nobody's; if neither does, the error is that the Lease is not found.
func (l *Lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	lease, raw, errLease := l.lease.Get(ctx)
	if errLease != nil {
		lease = &resourcelock.LeaderElectionRecord{}
		errLease = fmt.Errorf("reading Lease %s: %w", l.Describe(), errLease)
	}
	if errLease != nil && !absent(errLease) {
		return nil, nil, errLease
	}
	l.seen.lease, l.seen.exists, l.seen.old = *lease, errLease == nil, resourcelock.LeaderElectionRecord{}
	if l.legacy != nil {
		old, text, err := l.legacy.get(ctx)
		if err != nil {
			return nil, nil, err
		}
		l.seen.old, raw = old, append(append(raw, '\n'), text...)
		l.watch()
	}
	if errLease != nil && (l.legacy == nil || l.legacy.seen == nil) {
		return nil, nil, errLease
	}
	out := merge(l.Identity(), l.options.Timing.Lease, l.seen.lease, l.seen.old)
	return &out, raw, nil
}

// watch tells of an old controller. A replica of this version that has written
// one lock and not the other yet looks like one, but not twice.
func (l *Lock) watch() {
	before := l.blocking
	l.blocking = ""
	if foreign(l.seen.old, l.Identity()) && l.seen.old.HolderIdentity != l.seen.lease.HolderIdentity {
		l.blocking = l.seen.old.HolderIdentity
	}
	if l.blocking != "" && l.blocking == before && l.told != l.blocking {
		l.told = l.blocking
		l.options.Waiting(l.reference(), l.blocking)
	}
}

// reference is the Lease without its UID, since it may not exist yet.
func (l *Lock) reference() *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Lease", APIVersion: coordinationv1.SchemeGroupVersion.String(), Namespace: l.options.Namespace, Name: l.options.Name}
}

// Create writes both locks.
func (l *Lock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.Update(ctx, record)
}

// Update writes both locks over what the last Get saw. A record of nobody gives
// up what is this replica's, and leaves alone what is somebody else's by now.
func (l *Lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	release := record.HolderIdentity == ""
	if l.legacy != nil && (!release || !foreign(l.seen.old, l.Identity())) {
		if err := l.legacy.put(ctx, record); err != nil {
			return err
		}
		l.seen.old = record
	}
	if release && foreign(l.seen.lease, l.Identity()) {
		return nil
	}
	write := l.lease.Update
	if !l.seen.exists {
		write = l.lease.Create
	}
	if err := write(ctx, record); err != nil {
		return fmt.Errorf("writing Lease %s: %w", l.Describe(), err)
	}
	l.seen.lease, l.seen.exists = record, true
	return nil
}

// RecordEvent says what this replica became, on the Lease.
func (l *Lock) RecordEvent(what string) { l.lease.RecordEvent(what) }

// Identity is this replica's own.
func (l *Lock) Identity() string { return l.options.Identity }

// Describe names the Lease.
func (l *Lock) Describe() string { return l.lease.Describe() }

func absent(err error) bool { return apierrors.IsNotFound(err) }

// recorder passes on what client-go says of the Lease.
type recorder func(lease *corev1.ObjectReference, reason, message string)

// Eventf says one thing.
func (r recorder) Eventf(object runtime.Object, _, reason, format string, args ...any) {
	lease, ok := object.(*coordinationv1.Lease)
	if !ok || r == nil {
		return
	}
	r(&corev1.ObjectReference{
		Kind: "Lease", APIVersion: coordinationv1.SchemeGroupVersion.String(),
		Namespace: lease.Namespace, Name: lease.Name, UID: lease.UID,
	}, reason, fmt.Sprintf(format, args...))
}
