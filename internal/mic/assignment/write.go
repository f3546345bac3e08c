package assignment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// write carries out all changes at once, and joins what fails.
func (r *Reconciler) write(ctx context.Context, pod identity.Key, changes Changes) error {
	var writes []func() error
	add := func(operation string, write func() error) {
		writes = append(writes, func() error {
			start := time.Now()
			err := write()
			r.written(operation, time.Since(start), err)
			return err
		})
	}
	for _, object := range changes.Create {
		add("addition", func() error { return r.create(ctx, pod, object) })
	}
	for _, update := range changes.Update {
		add("update", func() error { return r.update(ctx, pod, update) })
	}
	for _, object := range changes.Delete {
		add("deletion", func() error { return r.delete(ctx, pod, object) })
	}
	failures := make([]error, len(writes))
	var group errgroup.Group
	group.SetLimit(writesAtOnce)
	for i, write := range writes {
		group.Go(func() error {
			failures[i] = write()
			return nil
		})
	}
	_ = group.Wait() // failures has them all
	return errors.Join(failures...)
}

func (r *Reconciler) create(ctx context.Context, pod identity.Key, object *v1.AzureAssignedIdentity) error {
	if err := r.client.Create(ctx, object); err != nil {
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil // the identity goes with its namespace
		}
		// One that exists was not in the cache yet, or is another pod's since a
		// moment: the next try sees it.
		r.warn(object, events.BindingApplyError, err)
		return fmt.Errorf("creating assignment %s: %w", objectKey(object), err)
	}
	r.pending.wrote(pod, object, time.Now())
	r.applied(object)
	return nil
}

func (r *Reconciler) update(ctx context.Context, pod identity.Key, change Update) error {
	patch := client.MergeFromWithOptions(change.From, client.MergeFromWithOptimisticLock{})
	err := r.client.Patch(ctx, change.To, patch)
	if apierrors.IsNotFound(err) {
		return nil // its event is on the way
	}
	if err != nil {
		r.warn(change.To, events.BindingApplyError, err)
		return fmt.Errorf("updating assignment %s: %w", objectKey(change.From), err)
	}
	if !change.To.DeletionTimestamp.IsZero() && len(change.To.Finalizers) == 0 {
		r.pending.deleted(pod, change.To, time.Now()) // its last finalizer was released
		return nil
	}
	r.pending.wrote(pod, change.To, time.Now())
	if change.From.Status.Status != change.To.Status.Status {
		r.applied(change.To)
	}
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
func (r *Reconciler) delete(ctx context.Context, pod identity.Key, object *v1.AzureAssignedIdentity) error {
	released := object.DeepCopy()
	if release(released) {
		err := r.client.Patch(ctx, released, client.MergeFromWithOptions(object, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) != nil {
			r.warn(object, events.BindingRemoveError, err)
			return fmt.Errorf("releasing assignment %s: %w", objectKey(object), err)
		}
	}
	// The UID keeps a new object of the same name from harm.
	err := r.client.Delete(ctx, released, client.Preconditions{UID: &object.UID})
	gone := apierrors.IsNotFound(err) // somebody else did it
	if err != nil && !gone {
		r.warn(object, events.BindingRemoveError, err)
		return fmt.Errorf("deleting assignment %s: %w", objectKey(object), err)
	}
	r.pending.deleted(pod, object, time.Now())
	if ref := object.Spec.AzureBindingRef; !gone && ref != nil && ref.Name != "" {
		r.events.Normal(events.Binding(ref), events.BindingRemoved, fmt.Sprintf("pod %s no longer has this binding's identity", kube.PodOf(object)))
	}
	return nil
}
