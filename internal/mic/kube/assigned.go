package kube

import (
	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// AttachingMessage goes with [v1.ReasonAttaching] on an assignment.
const AttachingMessage = "waiting for Azure to attach the identity to the node's virtual machine or scale set"

// ManagedIdentity returns the managed identity that must be on the node's
// resource for the assignment, and false if there is none: it is of another
// kind, going away, or cannot be read.
func ManagedIdentity(a *v1.AzureAssignedIdentity) (armid.ID, bool) {
	if a.DeletionTimestamp != nil || a.Status.Status == v1.AssignedIDUnassigned || a.Spec.AzureIdentityRef == nil {
		return armid.ID{}, false
	}
	principal, err := identity.FromObject(a.Spec.AzureIdentityRef)
	if err != nil || !principal.Attached() {
		return armid.ID{}, false
	}
	return principal.ResourceID, true
}
