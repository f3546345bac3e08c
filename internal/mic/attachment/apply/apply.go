// Package apply carries a plan out: it writes the record of what the controller
// owns, sends the patch to ARM and follows its operation.
//
// The order of what it does is what survives a crash. The record is written
// before the patch; that one is about to be sent, too. ARM's answer is written
// before anything waits for the operation, so that whoever leads next asks for it
// and sends nothing twice.
//
// It must not decide what to do when a step fails, and it must not wait.
package apply

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

// callTimeout bounds one request to ARM, the controller's own token included.
const callTimeout = time.Minute

// ARM changes the identities of resources. Failures are those of package
// armclient, where the methods are described.
type ARM interface {
	Ready(ref compute.Ref, last time.Time) error
	Begin(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (armclient.Operation, error)
	Poll(ctx context.Context, ref compute.Ref, running armclient.Running) (armclient.Operation, error)
}

// Applier writes records and sends patches.
type Applier struct {
	Client client.Client
	ARM    ARM
}

// Record makes the record say what is owned, and brings object up to date with
// it. A record that already says so is left alone; one that somebody else has
// written since it was read is an error.
func (a *Applier) Record(ctx context.Context, object *v1.AzureIdentityAttachment, owned []v1.OwnedIdentity) error {
	if object.UID != "" && equality.Semantic.DeepEqual(object.Spec.Owned, owned) {
		return nil
	}
	updated := object.DeepCopy()
	updated.Spec.Owned = owned
	write := func() error { return a.Client.Update(ctx, updated) }
	if object.UID == "" {
		write = func() error { return a.Client.Create(ctx, updated) }
	}
	if err := write(); err != nil {
		return fmt.Errorf("recording what is owned on %s: %w", object.Spec.ResourceID, err)
	}
	*object = *updated
	return nil
}

// Ready returns nil if a patch could be sent now, else an error that says when.
func (a *Applier) Ready(ref compute.Ref, object *v1.AzureIdentityAttachment) error {
	var last time.Time
	if operation := object.Status.LastOperation; operation != nil {
		last = operation.StartTime.Time
	}
	return a.ARM.Ready(ref, last)
}

// Begin sends the patch. That it is about to be sent must stand in the object.
// Failure is ARM's.
func (a *Applier) Begin(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (operation armclient.Operation, failure error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.ARM.Begin(ctx, ref, etag, patch)
}

// Poll asks once for the operation. Failure is ARM's, of asking or of the
// operation: see [armclient.Client.Poll].
func (a *Applier) Poll(ctx context.Context, ref compute.Ref, object *v1.AzureIdentityAttachment, operation *v1.ARMOperation) (armclient.Operation, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.ARM.Poll(ctx, ref, armclient.Running{
		ResumeToken: operation.ResumeToken, Started: operation.StartTime.Time, Add: Attaching(object),
	})
}

// Attaching are the identities that the patch adds whose end nobody knows yet.
func Attaching(object *v1.AzureIdentityAttachment) []armid.ID {
	var out []armid.ID
	for _, owned := range object.Spec.Owned {
		if id, err := armid.Parse(owned.ResourceID); err == nil && owned.State == v1.OwnershipAttaching {
			out = append(out, id)
		}
	}
	return out
}

// Note writes how an operation stands, and brings object up to date with it.
func (a *Applier) Note(ctx context.Context, object *v1.AzureIdentityAttachment, operation *v1.ARMOperation) error {
	updated := object.DeepCopy()
	updated.Status.LastOperation = operation
	if err := a.Client.Status().Patch(ctx, updated, client.MergeFrom(object)); err != nil {
		return fmt.Errorf("noting the operation on %s: %w", object.Spec.ResourceID, err)
	}
	*object = *updated
	return nil
}

// Forget deletes the record of a resource that is no more.
func (a *Applier) Forget(ctx context.Context, object *v1.AzureIdentityAttachment) error {
	if object.UID == "" {
		return nil
	}
	precondition := client.Preconditions{UID: &object.UID, ResourceVersion: &object.ResourceVersion}
	if err := a.Client.Delete(ctx, object, precondition); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting the record of %s: %w", object.Spec.ResourceID, err)
	}
	return nil
}
