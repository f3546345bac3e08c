// Package assignment keeps, for every pod that a binding selects, one
// AzureAssignedIdentity for each identity that the pod may use. Its key is one
// pod.
//
// It must not know Azure: whether an identity is on the pod's node is the
// attachment's to find out and to say.
package assignment

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// Options are what a [Reconciler] works with; all but Shared, Observe, Begin and Watchdog are
// needed.
type Options struct {
	Client client.Client
	// Shared, if set, is of the Client's cache.
	Shared *kube.Shared
	// Live reads from the API server itself.
	Live   client.Reader
	Events *events.Recorder
	// Namespaced restricts every identity to pods of its own namespace.
	Namespaced bool
	// Observe, if set, is told of every write of an assignment: "addition",
	// "update" or "deletion".
	Observe func(operation string, took time.Duration, err error)
	// Begin, if set, returns when assignments may be changed. No worker begins
	// before.
	Begin func(context.Context) error
	// Watchdog, if set, watches every pod that is worked on.
	Watchdog *watchdog.Watchdog
}

// Reconciler makes the assignments of one pod what the rule says.
type Reconciler struct {
	client     client.Client
	live       client.Reader
	lookup     kube.Lookup
	events     *events.Recorder
	namespaced bool
	written    func(string, time.Duration, error)
	pending    pending
	departed   departed
	begin      func(context.Context) error
	watchdog   *watchdog.Watchdog
}

// NewReconciler returns a Reconciler.
func NewReconciler(o Options) *Reconciler {
	r := &Reconciler{
		client: o.Client, live: o.Live, lookup: kube.Lookup{Reader: o.Client, Shared: o.Shared}, events: o.Events,
		namespaced: o.Namespaced, written: o.Observe, watchdog: o.Watchdog,
	}
	if r.written == nil {
		r.written = func(string, time.Duration, error) {}
	}
	if r.begin = o.Begin; r.begin == nil {
		r.begin = func(context.Context) error { return nil }
	}
	return r
}

const (
	// cacheLag is how long the cache is given to see somebody's write.
	cacheLag = 100 * time.Millisecond
	// lookAgain is when a pod is looked at again that the cache does not show yet.
	// Its event comes sooner.
	lookAgain = time.Second
	// writesAtOnce bounds the writes in flight for one pod.
	writesAtOnce = 8
)

// Reconcile brings one pod's assignments up to date. A write that fails does not
// keep the others from being tried.
func (r *Reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	key := kube.KeyOf(request)
	current, err := r.lookup.AssignmentsOf(ctx, key)
	if err != nil {
		return reconcile.Result{}, err
	}
	if left := r.pending.wait(key, current, time.Now()); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	pod, err := r.lookup.Pod(ctx, key)
	if err != nil {
		return reconcile.Result{}, err
	}
	if late, err := r.late(ctx, key, pod, current); late || err != nil {
		return reconcile.Result{RequeueAfter: lookAgain}, err
	}
	snapshot, err := r.decide(ctx, key, pod)
	if err != nil {
		return reconcile.Result{}, err
	}
	snapshot.Current = current
	err = r.write(ctx, key, Compute(snapshot))
	if stale(err) {
		return reconcile.Result{RequeueAfter: cacheLag}, nil
	}
	return reconcile.Result{}, err
}

// stale reports whether all that failed is what an up-to-date cache would have
// avoided.
func stale(err error) bool {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return false
	}
	for _, failure := range joined.Unwrap() {
		if !apierrors.IsConflict(failure) && !apierrors.IsAlreadyExists(failure) {
			return false
		}
	}
	return true
}

// late reports whether the cache does not show a pod that is there, and whose
// assignments it shows.
func (r *Reconciler) late(ctx context.Context, key identity.Key, pod *corev1.Pod, current []*v1.AzureAssignedIdentity) (bool, error) {
	if pod != nil || len(current) == 0 {
		r.departed.forget(key)
		return false, nil
	}
	if r.departed.has(key) {
		return false, nil
	}
	return r.exists(ctx, key)
}

// exists asks the API server itself whether there is such a pod with the label.
// The cache may not show it yet, as when the assignment is another leader's, and
// what a running pod has must not be taken away for that.
func (r *Reconciler) exists(ctx context.Context, key identity.Key) (bool, error) {
	if key.Name == "" {
		return false, nil
	}
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	// The right to list pods is there already; that to get one is not.
	err := r.live.List(ctx, list, client.InNamespace(key.Namespace), client.MatchingFields{metav1.ObjectNameField: key.Name}, client.HasLabels{v1.PodLabel})
	if err != nil {
		return false, fmt.Errorf("looking for pod %s: %w", key, err)
	}
	return len(list.Items) > 0, nil
}

// decide returns what a pod may use; nothing for one that is gone or finished.
func (r *Reconciler) decide(ctx context.Context, key identity.Key, pod *corev1.Pod) (Snapshot, error) {
	catalog := &catalog{ctx: ctx, lookup: r.lookup}
	snapshot := Snapshot{Pod: key, Namespaced: r.namespaced, Taken: catalog.taken(key), Now: time.Now()}
	if pod == nil || finished(pod) {
		return snapshot, nil
	}
	asked := binding.Pod{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels}
	decision := binding.Decide(asked, catalog, binding.Policy{Namespaced: r.namespaced})
	r.tell(pod, decision)
	snapshot.Node, snapshot.Grants = pod.Spec.NodeName, decision.Grants
	return snapshot, catalog.err
}

// finished pods need no identity any more. A pod that is being deleted does:
// its programs may still be saying goodbye.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func (r *Reconciler) tell(pod *corev1.Pod, decision binding.Decision) {
	told := Tell(pod.Namespace, decision)
	for reason, message := range told.Pod {
		r.events.Warn(events.Pod(pod), string(reason), string(reason), message)
	}
	for _, object := range told.Conflicts {
		r.events.Warn(events.Binding(object), string(v1.ReasonNameConflict), string(v1.ReasonNameConflict), conflicting)
	}
}
