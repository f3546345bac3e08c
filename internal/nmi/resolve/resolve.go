package resolve

import (
	"slices"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Query is which identity a pod asks for, as it spelled the IDs. The zero Query
// asks for none in particular. An identity must match everything that is set.
type Query struct {
	ClientID, ObjectID string
	ResourceID         armid.ID
}

// Cluster knows the identities of the whole cluster, the pod's or not.
type Cluster interface {
	// HasIdentity reports whether an AzureIdentity has the client ID, or the
	// resource ID. A zero argument is not looked for.
	HasIdentity(clientID string, resourceID armid.ID) bool
}

// Choice is the answer to a request that can be served.
type Choice struct {
	// Identities holds the one identity to use. If the pod asked by object ID
	// there can be several: no AzureIdentity says its object ID, so the one to
	// use is that whose token carries it.
	Identities []identity.Identity
	// Several says that the pod asked for none in particular and has others.
	Several bool
	// Otherwise is the refusal if none of the Identities has the object ID that
	// was asked for.
	Otherwise *refusal.Error
}

// Resolve chooses, or refuses.
//
//	the pod has no label                             NotSelected
//	asked for none, one candidate or more usable     the first
//	asked for one, and it is usable                  that one
//	              and it is to come                  NotAssigned or NotAttached
//	              by IDs of different identities     InvalidRequest
//	              and no binding selects the pod     NoBinding
//	              and it is another pod's            NotBound, or why the rule refuses it
//	              and a binding names one to come    IdentityNotFound
//	              and nobody knows it                UnknownIdentity
//	no candidate, or none usable yet                 why
func Resolve(query Query, c Candidates, cluster Cluster) (Choice, *refusal.Error) {
	if c.pod.Selector() == "" {
		return Choice{}, refusal.New(v1.ReasonNotSelected,
			"Identity not found: pod %s carries no label %s, so no AzureIdentityBinding selects it", c.name(), v1.PodLabel)
	}
	matching := slices.DeleteFunc(slices.Clone(c.all), func(candidate Candidate) bool { return !query.matches(candidate.Identity) })
	usable := identities(matching)
	switch {
	case len(usable) > 0 && query.ObjectID != "":
		return Choice{Identities: usable, Otherwise: c.noSuchObject(matching)}, nil
	case len(usable) > 0:
		return Choice{Identities: usable[:1], Several: query == (Query{}) && len(c.all) > 1}, nil
	case len(matching) > 0:
		return Choice{}, c.pending(matching)
	case query.ClientID == "" && query.ResourceID.IsZero():
		return Choice{}, c.nothing()
	}
	return Choice{}, c.notTheirs(query, cluster)
}

// Waits reports whether a refusal may turn into an answer by itself within
// seconds, so that it is worth waiting for the watch.
func Waits(reason v1.Reason) bool {
	switch reason {
	case v1.ReasonNotAssigned, v1.ReasonNotAttached, v1.ReasonNoBinding, v1.ReasonIdentityNotFound:
		return true
	}
	return false
}

func (q Query) matches(id identity.Identity) bool {
	return (q.ClientID == "" || id.ClientID.Matches(q.ClientID)) && (q.ResourceID.IsZero() || id.ResourceID == q.ResourceID)
}

func (q Query) contradicts(id identity.Identity) bool {
	return q.ClientID != "" && !q.ResourceID.IsZero() && id.ClientID.Matches(q.ClientID) != (id.ResourceID == q.ResourceID)
}

func identities(candidates []Candidate) []identity.Identity {
	var out []identity.Identity
	for _, candidate := range candidates {
		if candidate.Pending == "" {
			out = append(out, candidate.Identity)
		}
	}
	return out
}

func (c Candidates) name() identity.Key {
	return identity.Key{Namespace: c.pod.Namespace, Name: c.pod.Name}
}

// pending refuses for the candidate that is furthest on its way.
func (c Candidates) pending(candidates []Candidate) *refusal.Error {
	for _, candidate := range candidates {
		if candidate.Pending == v1.ReasonNotAttached {
			return refusal.New(v1.ReasonNotAttached,
				"AzureIdentity %s is assigned to pod %s, but not yet attached to its node: the controller (MIC) is at it, and its AzureAssignedIdentity says how far it is",
				candidate.Identity.Key, c.name())
		}
	}
	return refusal.New(v1.ReasonNotAssigned,
		"AzureIdentity %s is bound to pod %s, but there is no AzureAssignedIdentity yet: if this lasts, look at the log of the controller (MIC)",
		candidates[0].Identity.Key, c.name())
}

// nothing refuses where the pod has no candidate at all. What may mend itself
// goes before what will not.
func (c Candidates) nothing() *refusal.Error {
	for _, r := range c.refusals {
		if Waits(r.Reason) {
			return refusal.New(r.Reason, "%s", r.Message)
		}
	}
	if len(c.refusals) > 0 {
		return refusal.New(c.refusals[0].Reason, "%s", c.refusals[0].Message)
	}
	return refusal.New(v1.ReasonNoBinding,
		"no AzureIdentityBinding selects pod %s: none has the selector %q", c.name(), c.pod.Selector())
}

func (c Candidates) noSuchObject(matching []Candidate) *refusal.Error {
	toCome := slices.DeleteFunc(slices.Clone(matching), func(candidate Candidate) bool { return candidate.Pending == "" })
	if len(toCome) > 0 {
		return c.pending(toCome)
	}
	return refusal.New(v1.ReasonUnknownIdentity,
		"Identity not found: none of the identities of pod %s has the object ID that was asked for", c.name())
}

func (c Candidates) notTheirs(query Query, cluster Cluster) *refusal.Error {
	if slices.ContainsFunc(c.all, func(candidate Candidate) bool { return query.contradicts(candidate.Identity) }) {
		return refusal.New(v1.ReasonInvalidRequest, "client_id and the resource ID name different identities: give one of them")
	}
	if len(c.all) == 0 && len(c.refusals) == 0 {
		return c.nothing()
	}
	if cluster.HasIdentity(query.ClientID, query.ResourceID) {
		return c.refusedOrNotBound()
	}
	if i := slices.IndexFunc(c.refusals, func(r binding.Refusal) bool { return Waits(r.Reason) }); i >= 0 {
		return refusal.New(c.refusals[i].Reason, "%s", c.refusals[i].Message)
	}
	return refusal.New(v1.ReasonUnknownIdentity,
		"Identity not found: no AzureIdentity of this cluster has the ID that pod %s asked for", c.name())
}

// refusedOrNotBound tells why a binding that selects the pod is in vain, if
// there is but that; the rule's own words help more than "not bound".
func (c Candidates) refusedOrNotBound() *refusal.Error {
	if len(c.all) == 0 && len(c.refusals) == 1 && !Waits(c.refusals[0].Reason) {
		return refusal.New(c.refusals[0].Reason, "%s", c.refusals[0].Message)
	}
	return refusal.New(v1.ReasonNotBound,
		"the identity that was asked for exists in this cluster, but no AzureIdentityBinding gives it to pod %s", c.name())
}
