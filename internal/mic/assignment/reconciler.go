// Package assignment keeps, for every pod that a binding selects, one
// AzureAssignedIdentity for each identity that the pod may use. Its key is one
// pod.
//
// It must not know Azure: whether an identity is on the pod's node is the
// attachment's to find out and to say.
package assignment

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// Options are what a [Reconciler] works with; all but Observe and Watchdog are
// needed.
type Options struct {
	Client client.Client
	Events *events.Recorder
	// Namespaced restricts every identity to pods of its own namespace.
	Namespaced bool
	// Observe, if set, is told of every write of an assignment: "addition",
	// "update" or "deletion".
	Observe func(operation string, took time.Duration, err error)
	// Watchdog, if set, watches every pod that is worked on.
	Watchdog *watchdog.Watchdog
}

// Reconciler makes the assignments of one pod what the rule says.
type Reconciler struct {
	client     client.Client
	lookup     kube.Lookup
	events     *events.Recorder
	namespaced bool
	written    func(string, time.Duration, error)
	watchdog   *watchdog.Watchdog
}

// NewReconciler returns a Reconciler.
func NewReconciler(o Options) *Reconciler {
	r := &Reconciler{client: o.Client, lookup: kube.Lookup{Reader: o.Client}, events: o.Events, namespaced: o.Namespaced, written: o.Observe, watchdog: o.Watchdog}
	if r.written == nil {
		r.written = func(string, time.Duration, error) {}
	}
	return r
}

// Reconcile brings one pod's assignments up to date. A write that fails does not
// keep the others from being tried.
func (r *Reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	seen, err := r.observe(ctx, kube.KeyOf(request))
	if err != nil {
		return reconcile.Result{}, err
	}
	r.sayRefusals(seen)
	err = r.write(ctx, Compute(seen.snapshot))
	if stale(err) {
		// The cache has not caught up with somebody's write, most often our own.
		return reconcile.Result{RequeueAfter: cacheLag}, nil
	}
	return reconcile.Result{}, err
}

// cacheLag is how long the cache is given to see a write.
const cacheLag = 100 * time.Millisecond

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

// observed is what the cache holds of one pod.
type observed struct {
	snapshot Snapshot
	pod      *corev1.Pod // nil: there is none
	refusals []binding.Refusal
}

func (r *Reconciler) observe(ctx context.Context, key identity.Key) (observed, error) {
	catalog := &catalog{ctx: ctx, lookup: r.lookup}
	seen := observed{snapshot: Snapshot{Pod: key, Namespaced: r.namespaced, Taken: catalog.taken(key), Now: time.Now()}}
	var errPod, errCurrent error
	seen.pod, errPod = r.lookup.Pod(ctx, key)
	seen.snapshot.Current, errCurrent = r.lookup.AssignmentsOf(ctx, key)
	if err := errors.Join(errPod, errCurrent); err != nil {
		return observed{}, err
	}
	if seen.pod == nil || finished(seen.pod) {
		return seen, nil
	}
	seen.snapshot.Node = seen.pod.Spec.NodeName
	asked := binding.Pod{Namespace: seen.pod.Namespace, Name: seen.pod.Name, Labels: seen.pod.Labels}
	decision := binding.Decide(asked, catalog, binding.Policy{Namespaced: r.namespaced})
	seen.snapshot.Grants, seen.refusals = decision.Grants, decision.Refusals
	return seen, catalog.err
}

// finished pods need no identity any more. A pod that is being deleted does:
// its programs may still be saying goodbye.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// sayRefusals tells the pod's owner what no condition can: what is wrong between
// this pod and a binding, where both are right by themselves.
func (r *Reconciler) sayRefusals(seen observed) {
	for _, refusal := range seen.refusals {
		if refusal.Reason == v1.ReasonNamespaceMismatch || refusal.Reason == v1.ReasonNameConflict {
			r.events.Warn(events.Pod(seen.pod), refusal.Binding.String(), string(refusal.Reason), refusal.Message)
		}
	}
}

func (r *Reconciler) write(ctx context.Context, changes Changes) error {
	var failures []error
	for _, object := range changes.Delete {
		failures = append(failures, r.timed("deletion", func() error { return r.delete(ctx, object) }))
	}
	for _, object := range changes.Update {
		failures = append(failures, r.timed("update", func() error { return r.update(ctx, object) }))
	}
	for _, object := range changes.Create {
		failures = append(failures, r.timed("addition", func() error { return r.create(ctx, object) }))
	}
	return errors.Join(failures...)
}

func (r *Reconciler) timed(operation string, write func() error) error {
	start := time.Now()
	err := write()
	r.written(operation, time.Since(start), err)
	return err
}

func (r *Reconciler) create(ctx context.Context, object *v1.AzureAssignedIdentity) error {
	if err := r.client.Create(ctx, object); err != nil {
		// One that exists was not in the cache yet, or is another pod's since a
		// moment: the next try sees it.
		r.warn(object, events.BindingApplyError, err)
		return fmt.Errorf("creating assignment %s: %w", objectKey(object), err)
	}
	r.applied(object)
	return nil
}

func (r *Reconciler) update(ctx context.Context, object *v1.AzureAssignedIdentity) error {
	if err := r.client.Update(ctx, object); err != nil {
		r.warn(object, events.BindingApplyError, err)
		return fmt.Errorf("updating assignment %s: %w", objectKey(object), err)
	}
	r.applied(object)
	return nil
}

// applied speaks for identities that need nothing of Azure; for the others the
// attachment does.
func (r *Reconciler) applied(object *v1.AzureAssignedIdentity) {
	if object.Status.Status == v1.AssignedIDAssigned && object.Spec.AzureBindingRef != nil {
		r.events.Normal(events.Binding(object.Spec.AzureBindingRef), events.BindingApplied,
			fmt.Sprintf("pod %s may use AzureIdentity %s", kube.PodOf(object), object.Spec.AzureIdentityRef.Name))
	}
}

// warn tells of a write that failed for a reason that will not pass by itself.
func (r *Reconciler) warn(object *v1.AzureAssignedIdentity, reason string, err error) {
	if object.Spec.AzureBindingRef == nil || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || errors.Is(err, context.Canceled) {
		return
	}
	r.events.Warn(events.Binding(object.Spec.AzureBindingRef), kube.PodOf(object).String(), reason, err.Error())
}

// delete releases the finalizer of the old controller's objects too, so that
// they go.
func (r *Reconciler) delete(ctx context.Context, object *v1.AzureAssignedIdentity) error {
	released := object.DeepCopy()
	if controllerutil.RemoveFinalizer(released, v1.AssignedIdentityFinalizer) {
		err := r.client.Patch(ctx, released, client.MergeFromWithOptions(object, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) != nil {
			r.warn(object, events.BindingRemoveError, err)
			return fmt.Errorf("releasing assignment %s: %w", objectKey(object), err)
		}
	}
	// The UID keeps a new object of the same name from harm.
	uid := object.UID
	err := r.client.Delete(ctx, released, &client.DeleteOptions{Preconditions: preconditions(uid)})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		r.warn(object, events.BindingRemoveError, err)
		return fmt.Errorf("deleting assignment %s: %w", objectKey(object), err)
	}
	if ref := object.Spec.AzureBindingRef; ref != nil && ref.Name != "" {
		r.events.Normal(events.Binding(ref), events.BindingRemoved, fmt.Sprintf("pod %s no longer has this binding's identity", kube.PodOf(object)))
	}
	return nil
}
