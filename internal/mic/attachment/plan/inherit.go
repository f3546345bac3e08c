package plan

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// Inherited returns the managed identity of which an assignment says that the
// old controller put it on its node's resource, and false if it does not say so:
//
//	the assignment…                                     says so, if there is…
//	                                                    no record   a record
//	Assigned, or older than states, without conditions  yes         with its finalizer only
//	Created, or Unassigned                              no          never
//	has a condition Ready                               no          never: it is ours
//	is of a service principal, or cannot be read        no          never
//
// The old controller removes the identities of all its assignments, whoever
// attached them, so that nothing is taken over that it would have left alone.
// Where there is a record, we have been here before, and only what the old
// controller did in between, after a rollback, is news: its finalizer is
// released from every object that was met then.
func Inherited(a *v1.AzureAssignedIdentity, recorded bool) (armid.ID, bool) {
	state := a.Status.Status
	says := (state == v1.AssignedIDAssigned || state == v1.AssignedIDLegacy) && meta.FindStatusCondition(a.Status.Conditions, v1.ConditionReady) == nil
	if !says || a.Spec.AzureIdentityRef == nil || recorded && !slices.Contains(a.Finalizers, v1.AssignedIdentityFinalizer) {
		return armid.ID{}, false
	}
	principal, err := identity.FromObject(a.Spec.AzureIdentityRef)
	if err != nil || !principal.Attached() {
		return armid.ID{}, false
	}
	return principal.ResourceID, true
}

// Inherit returns the records with what is inherited. What is recorded already
// stays as it is.
func Inherit(records []v1.OwnedIdentity, inherited []armid.ID) []v1.OwnedIdentity {
	out := records
	for _, id := range inherited {
		if !slices.ContainsFunc(out, func(r v1.OwnedIdentity) bool { return r.ResourceID == id.String() }) {
			out = with(out, v1.OwnedIdentity{ResourceID: id.String(), State: v1.OwnershipInherited})
		}
	}
	return out
}
