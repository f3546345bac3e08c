package assignment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// workers is how many pods are worked on at once. Together they bound the writes
// in flight; the old controller allowed 20 for each virtual machine. Most of
// their time they wait for the API server, which has its own fairness.
const workers = 32

// longestRun is far above what the API server takes for the writes of one pod.
const longestRun = 5 * time.Minute

// Register adds the controller to the manager.
func (r *Reconciler) Register(mgr manager.Manager) error {
	c, err := controller.New("assignment", mgr, controller.Options{
		Reconciler:              kube.After(r.begin, watchdog.Watch(r.watchdog, "assignment", longestRun, r)),
		MaxConcurrentReconciles: workers,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, time.Minute),
	})
	if err != nil {
		return fmt.Errorf("adding the assignment controller: %w", err)
	}
	cache := mgr.GetCache()
	return errors.Join(
		c.Watch(source.Kind(cache, &corev1.Pod{}, &onPod{departed: &r.departed}, podChanged())),
		c.Watch(source.Kind(cache, &v1.AzureIdentity{}, kube.Touched(r.podsOfIdentity), identityChanged())),
		c.Watch(source.Kind(cache, &v1.AzureIdentityBinding{}, kube.Touched(r.podsOfBinding), predicate.TypedGenerationChangedPredicate[*v1.AzureIdentityBinding]{})),
		// Somebody edits or deletes an assignment, or it has no pod any more.
		c.Watch(source.Kind(cache, &v1.AzureAssignedIdentity{}, kube.Touched(r.podOfAssignment), assignmentChanged())),
	)
}

func (r *Reconciler) podOfAssignment(_ context.Context, a *v1.AzureAssignedIdentity) []reconcile.Request {
	pod := kube.PodOf(a)
	r.pending.shown(pod, a)
	return []reconcile.Request{kube.Request(pod)}
}

func (r *Reconciler) podsOfBinding(ctx context.Context, b *v1.AzureIdentityBinding) []reconcile.Request {
	var out []reconcile.Request
	for _, selector := range kube.Selectors(b) {
		pods, err := r.lookup.PodsWith(ctx, selector)
		if err != nil {
			return nil // the cache has the index, or nothing works at all
		}
		for _, pod := range pods {
			out = append(out, kube.Request(identity.Key{Namespace: pod.Namespace, Name: pod.Name}))
		}
	}
	return out
}

func (r *Reconciler) podsOfIdentity(ctx context.Context, i *v1.AzureIdentity) []reconcile.Request {
	bindings, err := r.lookup.BindingsOf(ctx, identity.Key{Namespace: i.Namespace, Name: i.Name})
	if err != nil {
		return nil // the cache has the index, or nothing works at all
	}
	var out []reconcile.Request
	for _, b := range bindings {
		out = append(out, r.podsOfBinding(ctx, b)...)
	}
	return out
}

// podChanged drops the many updates of a pod that change nothing for it.
func podChanged() predicate.TypedPredicate[*corev1.Pod] {
	return predicate.TypedFuncs[*corev1.Pod]{UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Pod]) bool {
		return e.ObjectOld.UID != e.ObjectNew.UID ||
			e.ObjectOld.Spec.NodeName != e.ObjectNew.Spec.NodeName ||
			e.ObjectOld.Labels[v1.PodLabel] != e.ObjectNew.Labels[v1.PodLabel] ||
			finished(e.ObjectOld) != finished(e.ObjectNew)
	}}
}

// identityChanged drops updates of an identity's metadata and status.
func identityChanged() predicate.TypedPredicate[*v1.AzureIdentity] {
	return predicate.TypedFuncs[*v1.AzureIdentity]{UpdateFunc: func(e event.TypedUpdateEvent[*v1.AzureIdentity]) bool {
		return !equality.Semantic.DeepEqual(e.ObjectOld.Spec, e.ObjectNew.Spec) || e.ObjectOld.Namespaced() != e.ObjectNew.Namespaced()
	}}
}

// assignmentChanged drops the updates by which the attachment says how far it
// is.
func assignmentChanged() predicate.TypedPredicate[*v1.AzureAssignedIdentity] {
	return predicate.TypedFuncs[*v1.AzureAssignedIdentity]{UpdateFunc: func(e event.TypedUpdateEvent[*v1.AzureAssignedIdentity]) bool {
		before, after := e.ObjectOld, e.ObjectNew
		return before.UID != after.UID ||
			before.Status.Status != after.Status.Status ||
			before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
			!slices.Equal(before.Finalizers, after.Finalizers) ||
			!maps.Equal(before.Labels, after.Labels) ||
			!equality.Semantic.DeepEqual(before.Spec, after.Spec)
	}}
}

// catalog is [binding.Catalog] over the cache. That rule knows no failure, so
// that the first one is kept here, and asked for afterwards.
type catalog struct {
	ctx    context.Context //nolint:containedctx // lives for one decision
	lookup kube.Lookup
	err    error
}

// Bindings returns the bindings with the selector.
func (c *catalog) Bindings(selector string) []*v1.AzureIdentityBinding {
	out, err := c.lookup.Bindings(c.ctx, selector)
	c.err = errors.Join(c.err, err)
	return out
}

// Identity returns an AzureIdentity, or nil.
func (c *catalog) Identity(key identity.Key) *v1.AzureIdentity {
	out, err := c.lookup.Identity(c.ctx, key)
	c.err = errors.Join(c.err, err)
	return out
}

func (c *catalog) taken(pod identity.Key) func(namespace, name string) bool {
	return func(namespace, name string) bool {
		object, err := c.lookup.Assignment(c.ctx, namespace, name)
		c.err = errors.Join(c.err, err)
		return object != nil && kube.PodOf(object) != pod
	}
}
