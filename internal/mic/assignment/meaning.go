package assignment

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// merge returns the current assignment with the desired content, and whether
// that differs in anything that counts. The conditions are the attachment's, as
// long as it is the same thing that they speak of.
func merge(current, desired *v1.AzureAssignedIdentity, attached bool) (*v1.AzureAssignedIdentity, bool) {
	updated := current.DeepCopy()
	released := release(updated)
	if current.DeletionTimestamp != nil {
		return updated, released // made again once it is gone
	}
	was, is := meaningOf(current), meaningOf(desired)
	moved := was.place() != is.place()
	switch {
	case moved || outlived(current, attached):
		updated.Status.Status, updated.Status.Conditions = desired.Status.Status, desired.Status.Conditions
	case equality.Semantic.DeepEqual(was, is) && current.Labels[v1.NodeNameLabel] == desired.Labels[v1.NodeNameLabel]:
		return updated, released
	}
	updated.Labels = nodeLabels(current.Labels, desired.Spec.NodeName)
	updated.Spec = desired.Spec
	return updated, true
}

// outlived reports whether the state can no longer be true of what the
// assignment says: the old controller was about to delete it, or it waits for
// Azure without need.
func outlived(a *v1.AzureAssignedIdentity, attached bool) bool {
	if attached {
		return a.Status.Status == v1.AssignedIDUnassigned
	}
	return !serves(a) || meta.IsStatusConditionFalse(a.Status.Conditions, v1.ConditionReady)
}

// release takes the old controller's finalizer off, and reports whether it was
// there. Those of others stay.
func release(a *v1.AzureAssignedIdentity) bool {
	before := len(a.Finalizers)
	a.Finalizers = slices.DeleteFunc(a.Finalizers, func(f string) bool { return f == v1.AssignedIdentityFinalizer })
	return len(a.Finalizers) != before
}

// meaning is what an assignment says, without the metadata of its copies: two
// with equal meanings serve old and new agents alike.
type meaning struct {
	Pod, Identity, Binding identity.Key
	Node                   string
	Spec                   v1.AzureIdentitySpec
	Annotations            map[string]string
	BindingSpec            v1.AzureIdentityBindingSpec
}

func meaningOf(a *v1.AzureAssignedIdentity) meaning {
	out := meaning{Pod: identity.Key{Namespace: a.Spec.PodNamespace, Name: a.Spec.Pod}, Node: a.Spec.NodeName}
	if object := a.Spec.AzureIdentityRef; object != nil {
		short := copyIdentity(object)
		out.Identity = identity.Key{Namespace: short.Namespace, Name: short.Name}
		out.Spec, out.Annotations = short.Spec, short.Annotations
		out.Spec.ClientID = strings.ToLower(out.Spec.ClientID)
		out.Spec.ResourceID = strings.TrimSuffix(strings.ToLower(out.Spec.ResourceID), "/")
		if secret := out.Spec.ClientPassword; secret != nil && *secret == (v1.SecretReference{}) {
			out.Spec.ClientPassword = nil // the old controller writes it as {}
		}
	}
	if object := a.Spec.AzureBindingRef; object != nil {
		short := copyBinding(object)
		out.Binding = identity.Key{Namespace: short.Namespace, Name: short.Name}
		out.BindingSpec = short.Spec
	}
	return out
}

// place is the part of a meaning that Azure must know of.
type place struct {
	node, resourceID, clientID string
	kind                       v1.IdentityType
	federated                  bool
}

func (m meaning) place() place {
	return place{m.Node, m.Spec.ResourceID, m.Spec.ClientID, m.Spec.Type, m.Spec.Federation != nil}
}
