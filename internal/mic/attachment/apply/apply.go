// Package apply carries a plan out: it writes the record of what the controller
// owns, and sends the patch to ARM.
//
// It must not decide what to do when a step fails.
package apply

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

// Updater changes the identities of a resource that still has the ETag, and
// returns what is there when ARM is done.
type Updater interface {
	Update(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (compute.Identities, error)
}

// Applier writes records and sends patches.
type Applier struct {
	Client client.Client
	ARM    Updater
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

// Patch sends the patch and waits for the operation's end. The operation is
// returned in every case.
func (a *Applier) Patch(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (compute.Identities, *v1.ARMOperation, error) {
	operation := &v1.ARMOperation{StartTime: metav1.Now(), Result: "Succeeded"}
	seen, err := a.ARM.Update(ctx, ref, etag, patch)
	operation.CompletionTime = new(metav1.NewTime(time.Now()))
	if err != nil {
		operation.Result, operation.Message = "Failed", err.Error()
	}
	return seen, operation, err
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
