package assignment

import (
	"fmt"
	"slices"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
)

// conflicting is what the author of a binding is told whose identity another one
// of the same name goes before. It names no pod: it is the same for all of them.
const conflicting = "pods of other namespaces that this binding selects get an AzureIdentity of the same name that goes before, " +
	"their own namespace's or else the first by namespace: give the identities different names"

// Told are the things to say of a decision that no condition can say: what is
// wrong between a pod and a binding that are each right by themselves.
type Told struct {
	// Pod are warnings on the pod, by reason; at most one for each.
	Pod map[v1.Reason]string
	// Conflicts are the bindings that give the pod nothing because of a name.
	Conflicts []*v1.AzureIdentityBinding
}

// Tell returns what to say of a decision:
//
//	NameConflict       on each binding that loses; on the pod too, unless it got its own
//	                   namespace's identity, as everybody expects
//	NamespaceMismatch  on the pod, unless it got an identity of its own namespace: then
//	                   it is the other namespace's twin of that, and nothing is wrong
//
// Every other reason stands in a condition of the binding or identity. However
// many bindings select the pod, it has one warning for each reason.
func Tell(namespace string, decision binding.Decision) Told {
	told := Told{Pod: map[v1.Reason]string{}}
	own := slices.ContainsFunc(decision.Grants, func(g binding.Grant) bool { return g.Identity.Namespace == namespace })
	said := map[v1.Reason][]binding.Refusal{}
	for _, refusal := range decision.Refusals {
		switch refusal.Reason {
		case v1.ReasonNameConflict:
			told.Conflicts = append(told.Conflicts, refusal.Object)
			if refusal.Winner.Namespace != namespace {
				said[refusal.Reason] = append(said[refusal.Reason], refusal)
			}
		case v1.ReasonNamespaceMismatch:
			if !own {
				said[refusal.Reason] = append(said[refusal.Reason], refusal)
			}
		}
	}
	for reason, refusals := range said {
		told.Pod[reason] = refusals[0].Message
		if more := len(refusals) - 1; more > 0 {
			told.Pod[reason] += fmt.Sprintf(" (and %d more like this)", more)
		}
	}
	return told
}
