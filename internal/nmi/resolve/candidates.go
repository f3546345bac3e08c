// Package resolve decides which identity answers a token request: what the pod
// may use and what it asked for in, one identity or a refusal with a Reason out.
//
// It is pure. It must not wait for anything or get a token: whether a refusal is
// worth waiting on is in its answer, and the caller does the waiting.
package resolve

import (
	"fmt"
	"slices"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// Candidate is an identity that is the pod's to use, now or soon.
type Candidate struct {
	Identity identity.Identity
	// Pending says why no token can be had yet: NotAssigned or NotAttached. It
	// is empty if one can.
	Pending v1.Reason
}

// Candidates are all identities of one pod. Use [Managed] or [Standard].
type Candidates struct {
	pod      binding.Pod
	all      []Candidate
	refusals []binding.Refusal
}

// Managed returns the candidates where the operator attached the identities:
// those that bindings of the pod's own namespace give it, all usable.
func Managed(pod binding.Pod, catalog binding.Catalog) Candidates {
	decision := binding.Decide(pod, catalog, binding.Policy{Namespaced: true})
	out := Candidates{pod: pod, refusals: decision.Refusals}
	for _, grant := range decision.Grants {
		out.all = append(out.all, Candidate{Identity: grant.Identity})
	}
	return out.sorted()
}

// StandardInput is what [Standard] decides from.
type StandardInput struct {
	Pod binding.Pod
	// Node is this node's name; assignments of other nodes do not count.
	Node string
	// Catalog tells which assignments are still to come.
	Catalog binding.Catalog
	Policy  binding.Policy
	// Assigned are assignments that may be the pod's; others are left out here.
	Assigned []*v1.AzureAssignedIdentity
}

// Standard returns the candidates where the controller attaches the identities.
// An assignment decides, by the copy of the identity that it carries:
//
//	its status          and then
//	Assigned or empty   usable
//	Created             NotAttached, if it must be attached at all
//	Unassigned          never used
//	none yet            NotAssigned, if the bindings give the pod the identity
//
// None counts of a pod that no binding selects: its label has changed, or its last
// binding is gone, and the controller takes the assignments away.
//
// A copy that names another principal than its AzureIdentity does today is out of
// date: it is not used, and the new assignment is to come.
func Standard(in StandardInput) Candidates {
	decision := binding.Decide(in.Pod, in.Catalog, in.Policy)
	out := Candidates{pod: in.Pod, refusals: decision.Refusals}
	assigned := map[identity.Key]Candidate{}
	for _, object := range in.Assigned {
		if !in.concerns(object) {
			continue
		}
		candidate, refusal := in.read(object)
		if refusal != nil {
			out.refusals = append(out.refusals, *refusal)
			continue
		}
		if known, twice := assigned[candidate.Identity.Key]; !twice || known.Pending != "" {
			assigned[candidate.Identity.Key] = candidate
		}
	}
	if len(decision.Grants)+len(decision.Refusals) == 0 {
		clear(assigned)
	}
	for _, grant := range decision.Grants {
		if copied, ok := assigned[grant.Identity.Key]; !ok || !samePrincipal(copied.Identity, grant.Identity) {
			assigned[grant.Identity.Key] = toCome(grant.Identity)
		}
	}
	for _, candidate := range assigned {
		out.all = append(out.all, candidate)
	}
	return out.sorted()
}

// toCome is a granted identity without an assignment. One that is not attached
// to nodes needs none.
func toCome(id identity.Identity) Candidate {
	if !id.Attached() {
		return Candidate{Identity: id}
	}
	return Candidate{Identity: id, Pending: v1.ReasonNotAssigned}
}

// samePrincipal compares all that tokens depend on. Who may use the identity is
// decided by the object, not by a copy.
func samePrincipal(a, b identity.Identity) bool {
	a.Namespaced = b.Namespaced
	return a == b
}

func (in *StandardInput) concerns(object *v1.AzureAssignedIdentity) bool {
	spec := &object.Spec
	return spec.Pod == in.Pod.Name && spec.PodNamespace == in.Pod.Namespace && spec.NodeName == in.Node &&
		spec.AzureIdentityRef != nil && object.Status.Status != v1.AssignedIDUnassigned && object.DeletionTimestamp == nil
}

func (in *StandardInput) read(object *v1.AzureAssignedIdentity) (Candidate, *binding.Refusal) {
	ref := object.Spec.AzureIdentityRef
	key := identity.Key{Namespace: ref.Namespace, Name: ref.Name}
	if (in.Policy.Namespaced || ref.Namespaced()) && ref.Namespace != in.Pod.Namespace {
		return Candidate{}, &binding.Refusal{Reason: v1.ReasonNamespaceMismatch, Identity: key,
			Message: fmt.Sprintf("AzureIdentity %s is for pods of namespace %s only, and the pod is in %s", key, key.Namespace, in.Pod.Namespace)}
	}
	id, err := identity.FromObject(ref)
	if err != nil {
		return Candidate{}, &binding.Refusal{Reason: v1.ReasonInvalidIdentity, Identity: key, Message: err.Error()}
	}
	status := object.Status.Status
	if id.Attached() && status != v1.AssignedIDAssigned && status != v1.AssignedIDLegacy {
		return Candidate{Identity: id, Pending: v1.ReasonNotAttached}, nil
	}
	return Candidate{Identity: id}, nil
}

// sorted puts the pod's own namespace first, then orders by namespace and name,
// so that the same objects always give the same answer.
func (c Candidates) sorted() Candidates {
	slices.SortFunc(c.all, func(a, b Candidate) int {
		if own := c.foreign(a) - c.foreign(b); own != 0 {
			return own
		}
		return a.Identity.Compare(b.Identity.Key)
	})
	return c
}

func (c Candidates) foreign(candidate Candidate) int {
	if candidate.Identity.Namespace == c.pod.Namespace {
		return 0
	}
	return 1
}
