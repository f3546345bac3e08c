// Package validity says on every AzureIdentity and AzureIdentityBinding whether
// it can be used as it is written, so that its author sees a mistake on the
// object itself, whether or not a pod needs it yet.
//
// It must not decide who may use an identity, nor repeat that rule: what it
// says is what [binding] would refuse for every pod alike.
package validity

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// Verdict is what is said of one object.
type Verdict struct {
	Reason  v1.Reason
	Message string
}

// OfIdentity says whether an AzureIdentity can be used.
func OfIdentity(object *v1.AzureIdentity) Verdict {
	if _, err := identity.FromObject(object); err != nil {
		return Verdict{v1.ReasonInvalidIdentity, err.Error()}
	}
	return Verdict{v1.ReasonValid, "the identity can be used"}
}

// OfBinding says whether a binding can be used, given the identity that it
// names; nil if there is none.
func OfBinding(object *v1.AzureIdentityBinding, named *v1.AzureIdentity) Verdict {
	spec, err := object.Spec.Normalized()
	switch {
	case err != nil:
		return Verdict{v1.ReasonInvalidBinding, err.Error()}
	case spec.AzureIdentity == "":
		return Verdict{v1.ReasonInvalidBinding, "azureIdentity is empty: name an AzureIdentity of the binding's namespace"}
	case spec.Selector == "":
		return Verdict{v1.ReasonInvalidBinding, "selector is empty: give the value of the pods' label aadpodidbinding"}
	case named == nil:
		return Verdict{v1.ReasonIdentityNotFound, fmt.Sprintf("AzureIdentity %s does not exist in namespace %s: create it beside the binding", spec.AzureIdentity, object.Namespace)}
	}
	if verdict := OfIdentity(named); verdict.Reason != v1.ReasonValid {
		return verdict
	}
	return Verdict{v1.ReasonValid, fmt.Sprintf("pods with the label aadpodidbinding=%s may use AzureIdentity %s", spec.Selector, spec.AzureIdentity)}
}

// Register adds the two controllers to the manager; the watchdog may be nil.
func Register(mgr manager.Manager, lookup kube.Lookup, recorder *events.Recorder, dog *watchdog.Watchdog) error {
	r := &reconciler{client: mgr.GetClient(), lookup: lookup, events: recorder}
	identities, errIdentities := newController(mgr, "identity-validity", dog, r.reconcileIdentity)
	bindings, errBindings := newController(mgr, "binding-validity", dog, r.reconcileBinding)
	if err := errors.Join(errIdentities, errBindings); err != nil {
		return fmt.Errorf("adding the validity controllers: %w", err)
	}
	cache := mgr.GetCache()
	return errors.Join(
		identities.Watch(source.Kind(cache, &v1.AzureIdentity{}, &handler.TypedEnqueueRequestForObject[*v1.AzureIdentity]{}, predicate.TypedGenerationChangedPredicate[*v1.AzureIdentity]{})),
		bindings.Watch(source.Kind(cache, &v1.AzureIdentityBinding{}, &handler.TypedEnqueueRequestForObject[*v1.AzureIdentityBinding]{}, predicate.TypedGenerationChangedPredicate[*v1.AzureIdentityBinding]{})),
		bindings.Watch(source.Kind(cache, &v1.AzureIdentity{}, kube.Touched(r.bindingsOf), predicate.TypedGenerationChangedPredicate[*v1.AzureIdentity]{})),
	)
}

// longestRun is far above what the API server takes for one write.
const longestRun = 5 * time.Minute

func newController(mgr manager.Manager, name string, dog *watchdog.Watchdog, f reconcile.Func) (controller.Controller, error) {
	return controller.New(name, mgr, controller.Options{
		Reconciler:              watchdog.Watch(dog, name, longestRun, reconcile.Reconciler(f)),
		MaxConcurrentReconciles: 2,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, time.Minute),
	})
}

type reconciler struct {
	client client.Client
	lookup kube.Lookup
	events *events.Recorder
}

func (r *reconciler) bindingsOf(ctx context.Context, i *v1.AzureIdentity) []reconcile.Request {
	bindings, err := r.lookup.BindingsOf(ctx, identity.Key{Namespace: i.Namespace, Name: i.Name})
	if err != nil {
		return nil // the cache has the index, or nothing works at all
	}
	var out []reconcile.Request
	for _, b := range bindings {
		out = append(out, kube.Request(identity.Key{Namespace: b.Namespace, Name: b.Name}))
	}
	return out
}

func (r *reconciler) reconcileIdentity(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	base, err := r.lookup.Identity(ctx, kube.KeyOf(request))
	if base == nil {
		return reconcile.Result{}, err
	}
	object := base.DeepCopy()
	say := said{object: object, base: base, conditions: &object.Status.Conditions, ref: events.Identity(object)}
	return r.say(ctx, say, OfIdentity(object))
}

func (r *reconciler) reconcileBinding(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var object v1.AzureIdentityBinding
	if err := r.client.Get(ctx, request.NamespacedName, &object); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var named *v1.AzureIdentity
	if names := kube.Names(&object); len(names) == 1 {
		var err error
		if named, err = r.lookup.Identity(ctx, names[0]); err != nil {
			return reconcile.Result{}, err
		}
	}
	base := object.DeepCopy()
	say := said{object: &object, base: base, conditions: &object.Status.Conditions, ref: events.Binding(&object)}
	return r.say(ctx, say, OfBinding(&object, named))
}

// said is an object, as it is and as it was, and where its conditions are.
type said struct {
	object, base client.Object
	conditions   *[]metav1.Condition
	ref          *corev1.ObjectReference
}

// say writes the condition if it changes anything, and warns of a bad one.
func (r *reconciler) say(ctx context.Context, s said, verdict Verdict) (reconcile.Result, error) {
	condition := metav1.Condition{
		Type: v1.ConditionReady, Status: metav1.ConditionTrue, ObservedGeneration: s.object.GetGeneration(),
		Reason: string(verdict.Reason), Message: verdict.Message,
	}
	if verdict.Reason != v1.ReasonValid {
		condition.Status = metav1.ConditionFalse
	}
	if !meta.SetStatusCondition(s.conditions, condition) {
		return reconcile.Result{}, nil
	}
	patch := client.MergeFromWithOptions(s.base, client.MergeFromWithOptimisticLock{})
	if err := r.client.Status().Patch(ctx, s.object, patch); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(fmt.Errorf("writing condition %s of %s: %w", v1.ConditionReady, client.ObjectKeyFromObject(s.object), err))
	}
	if condition.Status == metav1.ConditionFalse {
		r.events.Warn(s.ref, "", string(verdict.Reason), verdict.Message)
	}
	return reconcile.Result{}, nil
}
