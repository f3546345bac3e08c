package attachment

import (
	"context"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Changed tells the reconciler of an assignment as the watch does.
func (r *Reconciler) Changed(ctx context.Context, a *v1.AzureAssignedIdentity) {
	_, _ = r.changed(ctx, a)
}
