// Package refusal says on an AzureIdentity that Azure does not let it be
// attached, or shows it as another than it says, and takes that back when it is
// over, so that its author sees it there and need not know which nodes its pods
// run on.
//
// It speaks of what the AzureIdentityAttachments say, and must not ask Azure nor
// judge by itself.
package refusal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// owner is the field manager of the condition. The other conditions of an
// AzureIdentity are other writers'.
const owner = "aad-pod-identity-mic-attachable"

// Register adds the controller to the manager.
func Register(mgr manager.Manager, lookup kube.Lookup, recorder *events.Recorder) error {
	r := &reconciler{client: mgr.GetClient(), lookup: lookup, events: recorder}
	c, err := controller.New("identity-refusal", mgr, controller.Options{
		Reconciler:              r,
		MaxConcurrentReconciles: 2,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, time.Minute),
	})
	if err != nil {
		return fmt.Errorf("adding the controller of refusals: %w", err)
	}
	cache := mgr.GetCache()
	return errors.Join(
		c.Watch(source.Kind(cache, &v1.AzureIdentity{}, &handler.TypedEnqueueRequestForObject[*v1.AzureIdentity]{}, identityChanged())),
		c.Watch(source.Kind(cache, &v1.AzureIdentityAttachment{}, kube.Touched(r.identitiesOf), troubleChanged())),
	)
}

// identityChanged lets an edit of the spec through, and of the condition.
func identityChanged() predicate.TypedPredicate[*v1.AzureIdentity] {
	return predicate.TypedFuncs[*v1.AzureIdentity]{UpdateFunc: func(e event.TypedUpdateEvent[*v1.AzureIdentity]) bool {
		return kube.Edition(e.ObjectOld) != kube.Edition(e.ObjectNew) || !equality.Semantic.DeepEqual(said(e.ObjectOld), said(e.ObjectNew))
	}}
}

func said(i *v1.AzureIdentity) *metav1.Condition {
	return meta.FindStatusCondition(i.Status.Conditions, v1.ConditionAttachable)
}

func troubleChanged() predicate.TypedPredicate[*v1.AzureIdentityAttachment] {
	return predicate.TypedFuncs[*v1.AzureIdentityAttachment]{UpdateFunc: func(e event.TypedUpdateEvent[*v1.AzureIdentityAttachment]) bool {
		before, after := e.ObjectOld.Status, e.ObjectNew.Status
		return !equality.Semantic.DeepEqual(before.Refused, after.Refused) || !equality.Semantic.DeepEqual(before.Estranged, after.Estranged)
	}}
}

type reconciler struct {
	client client.Client
	lookup kube.Lookup
	events *events.Recorder
}

// identitiesOf are the AzureIdentities that a record speaks of.
func (r *reconciler) identitiesOf(ctx context.Context, a *v1.AzureIdentityAttachment) []reconcile.Request {
	var out []reconcile.Request
	for _, text := range kube.Troubled(a) {
		id, err := armid.Parse(text)
		if err != nil {
			continue
		}
		objects, err := r.lookup.Naming(ctx, id)
		if err != nil {
			return nil // the cache has the index, or nothing works at all
		}
		for _, object := range objects {
			out = append(out, kube.Request(identity.Key{Namespace: object.Namespace, Name: object.Name}))
		}
	}
	return out
}

// Reconcile brings the condition of one AzureIdentity up to date.
func (r *reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	object, err := r.lookup.Identity(ctx, kube.KeyOf(request))
	if object == nil {
		return reconcile.Result{}, err
	}
	var records []*v1.AzureIdentityAttachment
	if id, ok := kube.ResourceOf(object); ok {
		if records, err = r.lookup.Troubling(ctx, id); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{}, r.say(ctx, object, Of(object, records))
}

// say writes the verdict if it changes anything, and tells of the change.
func (r *reconciler) say(ctx context.Context, object *v1.AzureIdentity, verdict *Verdict) error {
	before := said(object)
	if verdict == nil && before == nil {
		return nil
	}
	var conditions []metav1.Condition
	if verdict != nil {
		now := slices.Clone(object.Status.Conditions)
		changed := meta.SetStatusCondition(&now, metav1.Condition{
			Type: v1.ConditionAttachable, Status: metav1.ConditionFalse, ObservedGeneration: object.Generation,
			Reason: string(verdict.Reason), Message: verdict.Message,
		})
		if !changed {
			return nil
		}
		conditions = []metav1.Condition{*meta.FindStatusCondition(now, v1.ConditionAttachable)}
	}
	if err := r.apply(ctx, object, conditions); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("writing condition %s of %s: %w", v1.ConditionAttachable, client.ObjectKeyFromObject(object), err)
	}
	if verdict == nil {
		r.events.Normal(events.Identity(object), string(v1.ReasonValid), "Azure no longer refuses the identity")
		r.events.Forget(object.UID, v1.ConditionAttachable)
		return nil
	}
	r.events.Warn(events.Identity(object), v1.ConditionAttachable, string(verdict.Reason), verdict.Message)
	return nil
}

// apply makes the controller's conditions the given ones, and leaves the others
// alone.
func (r *reconciler) apply(ctx context.Context, object *v1.AzureIdentity, conditions []metav1.Condition) error {
	content := map[string]any{
		"apiVersion": v1.GroupVersion.String(), "kind": "AzureIdentity",
		// The UID keeps a new object of the same name from being told.
		"metadata": map[string]any{"namespace": object.Namespace, "name": object.Name, "uid": string(object.UID)},
	}
	status := &v1.AzureIdentityStatus{Conditions: conditions}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return fmt.Errorf("encoding the condition: %w", err)
	}
	content["status"] = fields
	configuration := client.ApplyConfigurationFromUnstructured(&unstructured.Unstructured{Object: content})
	return r.client.Status().Apply(ctx, configuration, client.FieldOwner(owner), client.ForceOwnership)
}
