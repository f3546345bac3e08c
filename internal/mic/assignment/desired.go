package assignment

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
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
	Create, Update, Delete []*v1.AzureAssignedIdentity
}

// Empty reports whether nothing is to be written.
func (c Changes) Empty() bool { return len(c.Create)+len(c.Update)+len(c.Delete) == 0 }

// Compute returns the changes that make the pod's assignments what it may use:
//
//	granted  assignment  says the same  →
//	yes      none                       created
//	yes      there       yes            left alone, however its objects' metadata changed
//	yes      there       no             updated; back to Created if another principal
//	                                    or node is meant
//	no       there                      deleted
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
		if !kept[objectKey(current)] {
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
	if current == nil {
		changes.Create = append(changes.Create, desired)
		return
	}
	kept[objectKey(current)] = true
	if current.DeletionTimestamp != nil {
		return // made again once it is gone
	}
	if updated, changed := merge(current, desired, grant.Identity.Attached()); changed {
		changes.Update = append(changes.Update, updated)
	}
}

// find returns the pod's own assignment of that name, plain or hashed.
func (s Snapshot) find(desired *v1.AzureAssignedIdentity) *v1.AzureAssignedIdentity {
	plain := s.plainName(desired.Spec.AzureIdentityRef.Name)
	for _, current := range s.Current {
		if current.Namespace == desired.Namespace && (current.Name == plain || current.Name == hashed(plain, s.Pod)) {
			return current
		}
	}
	return nil
}

func (s Snapshot) desired(grant binding.Grant) *v1.AzureAssignedIdentity {
	out := &v1.AzureAssignedIdentity{
		TypeMeta: metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureAssignedIdentity"},
		Spec: v1.AzureAssignedIdentitySpec{
			AzureIdentityRef: copyIdentity(grant.Object),
			AzureBindingRef:  copyBinding(grant.Binding),
			Pod:              s.Pod.Name, PodNamespace: s.Pod.Namespace, NodeName: s.Node,
		},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDCreated, AvailableReplicas: 1},
	}
	if grant.Identity.Attached() {
		out.Status.Conditions = s.attaching()
	} else {
		// Nothing has to happen in Azure first.
		out.Status.Status = v1.AssignedIDAssigned
	}
	out.Namespace = v1.DefaultAssignedIdentityNamespace
	if s.Namespaced || grant.Identity.Namespaced {
		out.Namespace = grant.Identity.Namespace
	}
	out.Name = s.plainName(grant.Identity.Name)
	if len(out.Name) > validation.DNS1123SubdomainMaxLength || s.Taken(out.Namespace, out.Name) {
		out.Name = hashed(out.Name, s.Pod)
	}
	out.Labels = nodeLabels(nil, s.Node)
	return out
}

// attaching is what the attachment would say first: so it need not be written
// once more.
func (s Snapshot) attaching() []metav1.Condition {
	return []metav1.Condition{{
		Type: v1.ConditionReady, Status: metav1.ConditionFalse, LastTransitionTime: metav1.NewTime(s.Now),
		Reason: string(v1.ReasonAttaching), Message: kube.AttachingMessage,
	}}
}

func (s Snapshot) plainName(identityName string) string {
	return s.Pod.Name + "-" + s.Pod.Namespace + "-" + identityName
}

// hashed makes a name that no other pod's can be, out of a plain one that is too
// long or that joins to the same text for another pod. The hash covers what the
// hyphens hide: where the pod's name ends.
func hashed(plain string, pod identity.Key) string {
	sum := sha256.Sum256([]byte(pod.String() + "\x00" + plain))
	suffix := "-" + hex.EncodeToString(sum[:5])
	if limit := validation.DNS1123SubdomainMaxLength - len(suffix); len(plain) > limit {
		plain = strings.TrimRight(plain[:limit], "-.")
	}
	return plain + suffix
}

// nodeLabels sets the label of the node, or takes it away where the node's name
// does not fit into a label.
func nodeLabels(labels map[string]string, node string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, labels)
	delete(out, v1.NodeNameLabel)
	if len(node) <= validation.LabelValueMaxLength {
		out[v1.NodeNameLabel] = node
	}
	return out
}

// copyIdentity is the copy that the assignment carries for the agent: in today's
// spelling, which old agents read, and without what nobody reads there.
func copyIdentity(object *v1.AzureIdentity) *v1.AzureIdentity {
	spec, err := object.Spec.Normalized()
	if err != nil { // a grant's object has been read before
		spec = object.Spec
	}
	spec.Metadata = nil
	out := &v1.AzureIdentity{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureIdentity"},
		ObjectMeta: copyMeta(object.ObjectMeta),
		Spec:       spec,
	}
	if behavior, ok := object.Annotations[v1.BehaviorAnnotation]; ok {
		out.Annotations = map[string]string{v1.BehaviorAnnotation: behavior}
	}
	return out
}

func copyBinding(object *v1.AzureIdentityBinding) *v1.AzureIdentityBinding {
	spec, err := object.Spec.Normalized()
	if err != nil { // a grant's object has been read before
		spec = object.Spec
	}
	spec.Metadata = nil
	return &v1.AzureIdentityBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureIdentityBinding"},
		ObjectMeta: copyMeta(object.ObjectMeta),
		Spec:       spec,
	}
}

// copyMeta keeps the name, the UID, by which Events are found, and the resource
// version, by which the old controller, after a rollback, sees that the copy is
// not out of date.
func copyMeta(meta metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: meta.Namespace, Name: meta.Name, UID: meta.UID, ResourceVersion: meta.ResourceVersion}
}

// merge returns the current assignment with the desired content, and whether
// that differs in anything that counts. The conditions are the attachment's.
func merge(current, desired *v1.AzureAssignedIdentity, attached bool) (*v1.AzureAssignedIdentity, bool) {
	was, is := meaningOf(current), meaningOf(desired)
	status := current.Status.Status
	switch {
	case !attached:
		status = v1.AssignedIDAssigned
	case was.place() != is.place(), status == v1.AssignedIDUnassigned:
		status = v1.AssignedIDCreated
	}
	labels := nodeLabels(current.Labels, desired.Spec.NodeName)
	same := equality.Semantic.DeepEqual(was, is) && status == current.Status.Status && equality.Semantic.DeepEqual(labels, current.Labels)
	if same {
		return nil, false
	}
	updated := current.DeepCopy()
	updated.Labels = labels
	updated.Spec = desired.Spec
	updated.Status.Status = status
	if status == v1.AssignedIDCreated && status != current.Status.Status {
		updated.Status.Conditions = desired.Status.Conditions
	}
	return updated, true
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
