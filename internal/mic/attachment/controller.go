package attachment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// workers is how many resources are worked on at once. A worker waits for ARM, for
// minutes where ARM is slow, and costs a goroutine. ARM lets a subscription begin
// 500 changes in a minute; more workers could not be busy, and fewer could all be
// held up by slow resources, so that others would wait behind them.
const workers = 512

type queue = workqueue.TypedRateLimitingInterface[compute.Ref]

// Register adds the controllers to the manager: the one of resources, and the
// one that answers for nodes that have none.
func (r *Reconciler) Register(mgr manager.Manager) error {
	options := controller.TypedOptions[compute.Ref]{
		Reconciler:              kube.After(r.WaitAdopted, watchdog.Watch(r.options.Watchdog, "attachment", longestStep, r)),
		MaxConcurrentReconciles: workers,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[compute.Ref](r.options.RetryMin, r.options.RetryMax),
	}
	options.DefaultFromConfig(mgr.GetControllerOptions())
	logger := mgr.GetLogger()
	options.LogConstructor = func(ref *compute.Ref) logr.Logger {
		if ref == nil {
			return logger.WithValues("controller", "attachment")
		}
		return logger.WithValues("controller", "attachment", obs.KeyResource, ref.String())
	}
	c, err := controller.NewTyped("attachment", mgr, options)
	if err != nil {
		return fmt.Errorf("adding the attachment controller: %w", err)
	}
	cache := mgr.GetCache()
	return errors.Join(
		c.Watch(source.TypedKind(cache, &v1.AzureAssignedIdentity{}, r.onAssignment())),
		c.Watch(source.TypedKind(cache, &corev1.Node{}, r.onNode())),
		c.Watch(source.TypedKind(cache, &v1.AzureIdentityAttachment{}, r.onRecord())),
		c.Watch(source.TypedKind(cache, &v1.AzureIdentity{}, r.onIdentity())),
		r.registerUnplaced(mgr),
		mgr.Add(adoption{r}),
	)
}

// add queues a resource after the gather window: the first event of a burst
// opens it, and the others fall into it.
func (r *Reconciler) add(q queue, ref compute.Ref) {
	q.AddAfter(ref, r.options.GatherWindow)
}

func (r *Reconciler) onAssignment() handler.TypedEventHandler[*v1.AzureAssignedIdentity, compute.Ref] {
	return handler.TypedFuncs[*v1.AzureAssignedIdentity, compute.Ref]{
		CreateFunc: func(ctx context.Context, e event.TypedCreateEvent[*v1.AzureAssignedIdentity], q queue) {
			if ref, ok := r.changed(ctx, e.Object); ok {
				r.add(q, ref)
			}
		},
		UpdateFunc: func(ctx context.Context, e event.TypedUpdateEvent[*v1.AzureAssignedIdentity], q queue) {
			versions := []*v1.AzureAssignedIdentity{e.ObjectNew}
			if e.ObjectOld.Spec.NodeName != e.ObjectNew.Spec.NodeName {
				versions = append(versions, e.ObjectOld)
			}
			for _, version := range versions {
				if ref, ok := r.changed(ctx, version); ok && matters(e.ObjectOld, e.ObjectNew) {
					r.add(q, ref)
				}
			}
		},
		DeleteFunc: func(ctx context.Context, e event.TypedDeleteEvent[*v1.AzureAssignedIdentity], q queue) {
			if ref, ok := r.changed(ctx, e.Object); ok {
				r.add(q, ref)
			} else {
				r.addRecorded(ctx, q) // the node went first: it may have been any of them
			}
		},
	}
}

// changed has the next pass over the resource of the assignment's node look at the
// assignment again. The resource is to be queued after that; false if the node has
// and had none.
func (r *Reconciler) changed(ctx context.Context, a *v1.AzureAssignedIdentity) (compute.Ref, bool) {
	ref, ok := r.placeOf(ctx, a.Spec.NodeName)
	if ok {
		r.observe.Changed(ref, client.ObjectKeyFromObject(a))
	}
	return ref, ok
}

// matters reports whether an update changes what is wanted, or takes back what
// was said. What the reports themselves write does not.
func matters(before, after *v1.AzureAssignedIdentity) bool {
	return !equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
		before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
		before.Status.Status != after.Status.Status && after.Status.Status != v1.AssignedIDAssigned
}

func (r *Reconciler) onNode() handler.TypedEventHandler[*corev1.Node, compute.Ref] {
	add := func(q queue, node *corev1.Node) {
		if ref, err := compute.ParseProviderID(node.Spec.ProviderID); err == nil {
			r.places.note(node.Name, ref)
			r.observe.Doubt(ref)
			r.add(q, ref)
		}
	}
	return handler.TypedFuncs[*corev1.Node, compute.Ref]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*corev1.Node], q queue) { add(q, e.Object) },
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*corev1.Node], q queue) {
			if e.ObjectOld.Spec.ProviderID != e.ObjectNew.Spec.ProviderID {
				add(q, e.ObjectOld)
				add(q, e.ObjectNew)
			}
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*corev1.Node], q queue) { add(q, e.Object) },
	}
}

// onIdentity looks again where an identity is refused or of no use, when
// somebody edits, makes or deletes an AzureIdentity that names it.
func (r *Reconciler) onIdentity() handler.TypedEventHandler[*v1.AzureIdentity, compute.Ref] {
	add := func(ctx context.Context, q queue, object *v1.AzureIdentity) {
		id, ok := kube.ResourceOf(object)
		if !ok {
			return
		}
		records, err := r.lookup.Troubling(ctx, id)
		if err != nil {
			return // the cache answers, or nothing works at all
		}
		for _, record := range records {
			r.addRecord(q, record)
		}
	}
	return handler.TypedFuncs[*v1.AzureIdentity, compute.Ref]{
		CreateFunc: func(ctx context.Context, e event.TypedCreateEvent[*v1.AzureIdentity], q queue) {
			if !e.IsInInitialList {
				add(ctx, q, e.Object)
			}
		},
		UpdateFunc: func(ctx context.Context, e event.TypedUpdateEvent[*v1.AzureIdentity], q queue) {
			if kube.Edition(e.ObjectOld) != kube.Edition(e.ObjectNew) {
				add(ctx, q, e.ObjectOld)
				add(ctx, q, e.ObjectNew)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.TypedDeleteEvent[*v1.AzureIdentity], q queue) { add(ctx, q, e.Object) },
	}
}

// onRecord looks at every recorded resource when the controller starts, so that
// nothing is left behind that lost its last pod meanwhile, and at one whose
// record somebody deletes.
func (r *Reconciler) onRecord() handler.TypedEventHandler[*v1.AzureIdentityAttachment, compute.Ref] {
	return handler.TypedFuncs[*v1.AzureIdentityAttachment, compute.Ref]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1.AzureIdentityAttachment], q queue) {
			if e.IsInInitialList {
				r.addRecord(q, e.Object)
			}
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1.AzureIdentityAttachment], q queue) {
			r.addRecord(q, e.Object)
		},
	}
}

func (r *Reconciler) addRecord(q queue, record *v1.AzureIdentityAttachment) {
	if ref, err := compute.ParseRef(record.Spec.ResourceID); err == nil {
		r.add(q, ref)
	}
}

func (r *Reconciler) addRecorded(ctx context.Context, q queue) {
	records, err := r.lookup.Attachments(ctx)
	if err != nil {
		return // the cache answers, or nothing works at all
	}
	for _, record := range records {
		r.addRecord(q, record)
	}
}

// registerUnplaced adds the controller whose key is a node's name.
func (r *Reconciler) registerUnplaced(mgr manager.Manager) error {
	c, err := controller.New("unplaced", mgr, controller.Options{
		Reconciler:  watchdog.Watch(r.options.Watchdog, "unplaced", longestStep, reconcile.Reconciler(reconcile.Func(r.reconcileNode))),
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, time.Minute),
	})
	if err != nil {
		return fmt.Errorf("adding the controller of nodes: %w", err)
	}
	cache := mgr.GetCache()
	return errors.Join(
		c.Watch(source.Kind(cache, &corev1.Node{}, &handler.TypedEnqueueRequestForObject[*corev1.Node]{}, nodeMoved())),
		c.Watch(source.Kind(cache, &v1.AzureAssignedIdentity{}, kube.Touched(r.unplacedNode))),
	)
}
