package assignment

import (
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// Snapshot is all that the assignments of one pod depend on.
type Snapshot struct {
	// Pod names the pod, whether it exists or not.
	Pod identity.Key
	// Node is the pod's node; empty while the pod is not bound to one.
	Node string
	// Grants are what the pod may use; empty for a pod that is gone or finished.
	Grants []binding.Grant
	// Current are the assignments that name the pod.
	Current []*v1.AzureAssignedIdentity
	// Taken reports whether an assignment of that namespace and name is another
	// pod's.
	Taken func(namespace, name string) bool
	// Namespaced is the install's switch: assignments live beside identities.
	Namespaced bool
	// Now is the time of what is said first on an assignment.
	Now time.Time
}

// Changes are what is to be written, in no order.
type Changes struct {
	Create []*v1.AzureAssignedIdentity
	Update []Update
	Delete []*v1.AzureAssignedIdentity
}

// Update is an assignment as it is and as it is to be. Only the difference is
// to be written: what is kept of an object in memory is not all of it.
type Update struct {
	From, To *v1.AzureAssignedIdentity
}

// Empty reports whether nothing is to be written.
func (c Changes) Empty() bool { return len(c.Create)+len(c.Update)+len(c.Delete) == 0 }

// Compute returns the changes that make the pod's assignments what it may use:
//
//	granted  assignment              says the same  →
//	yes      none                                   created
//	yes      there                   yes            left alone, however its objects' metadata changed
//	yes      there                   no             updated; back to Created if another principal
//	                                                or node is meant
//	yes      there, in the namespace yes            kept until the one in the right namespace is
//	         of the other mode                      Assigned, so that no token is missed; then deleted
//	no       there                                  deleted
//
// A finalizer of the old controller is released as soon as it is met: nothing
// that it guards is guarded by it here, and an uninstall would leave objects
// that nobody can delete. The old controller does not need it either: its delete
// of an object without one is over at once.
//
// What it returns may be changed by the caller; what it was given is not.
func Compute(s Snapshot) Changes {
	var changes Changes
	kept := map[identity.Key]bool{}
	if s.Node != "" {
		for _, grant := range s.Grants {
			s.reconcile(grant, kept, &changes)
		}
	}
	for _, current := range s.Current {
		// One that somebody else's finalizer holds is deleted already.
		if !kept[objectKey(current)] && (current.DeletionTimestamp == nil || release(current.DeepCopy())) {
			changes.Delete = append(changes.Delete, current)
		}
	}
	return changes
}

func objectKey(a *v1.AzureAssignedIdentity) identity.Key {
	return identity.Key{Namespace: a.Namespace, Name: a.Name}
}

func (s Snapshot) reconcile(grant binding.Grant, kept map[identity.Key]bool, changes *Changes) {
	desired := s.desired(grant)
	current := s.find(desired)
	if current == nil || !serves(current) {
		if standIn := s.standIn(desired); standIn != nil {
			kept[objectKey(standIn)] = true
		}
	}
	if current == nil {
		s.name(desired)
		changes.Create = append(changes.Create, desired)
		return
	}
	kept[objectKey(current)] = true
	if updated, changed := merge(current, desired, grant.Identity.Attached()); changed {
		changes.Update = append(changes.Update, Update{From: current, To: updated})
	}
}

// find returns the pod's own assignment of that identity, by its plain or hashed
// name, in the namespace where it belongs.
func (s Snapshot) find(desired *v1.AzureAssignedIdentity) *v1.AzureAssignedIdentity {
	for _, current := range s.Current {
		if current.Namespace == desired.Namespace && s.named(current, desired) {
			return current
		}
	}
	return nil
}

// standIn returns the assignment that serves the pod meanwhile: of the same
// identity, where it belonged before the mode changed.
func (s Snapshot) standIn(desired *v1.AzureAssignedIdentity) *v1.AzureAssignedIdentity {
	is := meaningOf(desired)
	for _, current := range s.Current {
		was := meaningOf(current)
		if current.Namespace != desired.Namespace && s.named(current, desired) && serves(current) &&
			was.Identity == is.Identity && was.place() == is.place() {
			return current
		}
	}
	return nil
}

func (s Snapshot) named(current, desired *v1.AzureAssignedIdentity) bool {
	plain := s.plainName(desired.Spec.AzureIdentityRef.Name)
	return current.Name == plain || current.Name == hashed(plain, s.Pod)
}

// serves reports whether an agent, old or new, gives tokens by the assignment.
func serves(a *v1.AzureAssignedIdentity) bool {
	return a.DeletionTimestamp == nil && (a.Status.Status == v1.AssignedIDAssigned || a.Status.Status == v1.AssignedIDLegacy)
}
