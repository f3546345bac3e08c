// Package binding decides which identities a pod may use, and says why not for
// every one that it may not.
//
// It is the one place of that rule, for the controller, the agent and the
// command line alike, and it is pure: objects in, a [Decision] out. It must not
// read a cache, know whether an identity is attached yet, or choose among
// several identities that a pod may use.
//
// The rule, for a pod with the label aadpodidbinding:
//
//	binding selects the pod's label value   no  → not considered
//	binding is consistent                   no  → InvalidBinding
//	identity of that name exists beside it  no  → IdentityNotFound
//	identity (or install) is namespaced,
//	and the pod is of another namespace     yes → NamespaceMismatch
//	identity is well formed                 no  → InvalidIdentity
//	an identity of the same name, from a
//	namespace that goes before, was granted yes → NameConflict
//	                                            → granted
//
// The pod's own namespace goes first, the others by name.
package binding

import (
	"errors"
	"slices"
	"strings"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// Pod is what the rule needs to know of a pod.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
}

// Selector returns the value of the pod's label aadpodidbinding. An empty value
// selects nothing, just as an absent label.
func (p Pod) Selector() string { return p.Labels[v1.PodLabel] }

// Catalog finds the objects that the rule is about. Objects are only read.
type Catalog interface {
	// Bindings returns every binding that may have the selector, in any order;
	// more than that is allowed, fewer is not.
	Bindings(selector string) []*v1.AzureIdentityBinding
	// Identity returns the AzureIdentity of that name, or nil.
	Identity(key identity.Key) *v1.AzureIdentity
}

// Policy holds the switches of an install.
type Policy struct {
	// Namespaced restricts every identity to pods of its own namespace; false
	// leaves that to each identity's annotation.
	Namespaced bool
}

// Grant is one identity that the pod may use.
type Grant struct {
	Identity identity.Identity
	// Binding and Object are the objects that gave it.
	Binding *v1.AzureIdentityBinding
	Object  *v1.AzureIdentity
}

// Refusal is one binding that selects the pod and does not give it an identity.
type Refusal struct {
	Reason  v1.Reason
	Message string
	// Binding selects the pod; Identity is what it names, as far as that is
	// known.
	Binding, Identity identity.Key
	// Winner is the identity that goes before; it is set for NameConflict only.
	Winner identity.Key
	// Object is the binding itself.
	Object *v1.AzureIdentityBinding
}

// Decision is what a pod may use and, for every binding that selects it in vain,
// why not. Both are ordered, so that equal inputs give equal decisions.
type Decision struct {
	Grants   []Grant
	Refusals []Refusal
}

// Decide applies the rule to one pod. A pod without the label has an empty
// Decision.
func Decide(pod Pod, catalog Catalog, policy Policy) Decision {
	selector := pod.Selector()
	if selector == "" {
		return Decision{}
	}
	d := decider{pod: pod, catalog: catalog, policy: policy, granted: map[string]identity.Key{}}
	for _, candidate := range d.selecting(selector) {
		d.consider(candidate)
	}
	return d.decision
}

type candidate struct {
	object *v1.AzureIdentityBinding
	key    identity.Key
	// names is the identity that the binding names; empty if err is set.
	names identity.Key
	err   error
}

type decider struct {
	pod      Pod
	catalog  Catalog
	policy   Policy
	granted  map[string]identity.Key
	decision Decision
}

// selecting returns the bindings that select the pod, the pod's own namespace
// first, then by namespace and name.
func (d *decider) selecting(selector string) []candidate {
	bindings := d.catalog.Bindings(selector)
	out := make([]candidate, 0, len(bindings))
	for _, object := range bindings {
		if c, selects := read(object, selector); selects {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		if own := d.foreign(a.key) - d.foreign(b.key); own != 0 {
			return own
		}
		return a.key.Compare(b.key)
	})
	return out
}

func (d *decider) foreign(key identity.Key) int {
	if key.Namespace == d.pod.Namespace {
		return 0
	}
	return 1
}

// read folds old spellings. A binding that contradicts itself selects a pod by
// either of its spellings, so that the refusal shows where the pod is.
func read(object *v1.AzureIdentityBinding, selector string) (candidate, bool) {
	c := candidate{object: object, key: identity.Key{Namespace: object.Namespace, Name: object.Name}}
	if object.Spec.Selector != selector && object.Spec.LegacySelector != selector {
		return c, false
	}
	spec, err := object.Spec.Normalized()
	if err == nil && spec.AzureIdentity == "" {
		err = errors.New("azureIdentity is empty: name an AzureIdentity of the binding's namespace")
	}
	c.err = err
	if err == nil {
		c.names = identity.Key{Namespace: object.Namespace, Name: spec.AzureIdentity}
	}
	return c, true
}

func (d *decider) consider(c candidate) {
	if c.err != nil {
		d.refuse(c, v1.ReasonInvalidBinding, "AzureIdentityBinding "+c.key.String()+" cannot be used: "+c.err.Error())
		return
	}
	if first, ok := d.granted[c.names.Name]; ok {
		if first != c.names {
			d.refuse(c, v1.ReasonNameConflict, "AzureIdentity "+first.String()+" goes before "+c.names.String()+" of the same name: give them different names")
			d.decision.Refusals[len(d.decision.Refusals)-1].Winner = first
		}
		return
	}
	object := d.catalog.Identity(c.names)
	if object == nil {
		d.refuse(c, v1.ReasonIdentityNotFound, "AzureIdentityBinding "+c.key.String()+" names AzureIdentity "+c.names.String()+", which does not exist: create it beside the binding")
		return
	}
	if (d.policy.Namespaced || object.Namespaced()) && object.Namespace != d.pod.Namespace {
		d.refuse(c, v1.ReasonNamespaceMismatch, "AzureIdentity "+c.names.String()+" is for pods of namespace "+c.names.Namespace+" only, and the pod is in "+d.pod.Namespace)
		return
	}
	id, err := identity.FromObject(object)
	if err != nil {
		d.refuse(c, v1.ReasonInvalidIdentity, err.Error())
		return
	}
	d.granted[c.names.Name] = c.names
	d.decision.Grants = append(d.decision.Grants, Grant{Identity: id, Binding: c.object, Object: object})
}

func (d *decider) refuse(c candidate, reason v1.Reason, message string) {
	d.decision.Refusals = append(d.decision.Refusals, Refusal{Reason: reason, Message: message, Binding: c.key, Identity: c.names, Object: c.object})
}

// Exception returns the first exception, by name, that applies to the pod: one
// of the pod's own namespace with a label that the pod carries, the key exactly,
// the value in any case. Exceptions that contradict themselves never apply.
func Exception(pod Pod, exceptions []*v1.AzurePodIdentityException) (identity.Key, bool) {
	var found []identity.Key
	for _, exception := range exceptions {
		if exception.Namespace == pod.Namespace && selects(exception, pod.Labels) {
			found = append(found, identity.Key{Namespace: exception.Namespace, Name: exception.Name})
		}
	}
	if len(found) == 0 {
		return identity.Key{}, false
	}
	return slices.MinFunc(found, identity.Key.Compare), true
}

func selects(exception *v1.AzurePodIdentityException, labels map[string]string) bool {
	spec, err := exception.Spec.Normalized()
	if err != nil {
		return false
	}
	for key, want := range spec.PodLabels {
		if got, ok := labels[key]; ok && strings.EqualFold(got, want) {
			return true
		}
	}
	return false
}
