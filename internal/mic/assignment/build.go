package assignment

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// noAzure goes with an assignment that is usable at once.
const noAzure = "the identity needs nothing on the node's virtual machine or scale set"

// desired is the assignment of a grant, still without a name.
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
		// What the attachment would say first: so it need not be written again.
		out.Status.Conditions = s.ready(metav1.ConditionFalse, v1.ReasonAttaching, kube.AttachingMessage)
	} else {
		out.Status.Status = v1.AssignedIDAssigned
		out.Status.Conditions = s.ready(metav1.ConditionTrue, v1.ReasonAssigned, noAzure)
	}
	out.Namespace = v1.DefaultAssignedIdentityNamespace
	if s.Namespaced || grant.Identity.Namespaced {
		out.Namespace = grant.Identity.Namespace
	}
	out.Labels = nodeLabels(nil, s.Node)
	return out
}

func (s Snapshot) ready(status metav1.ConditionStatus, reason v1.Reason, message string) []metav1.Condition {
	return []metav1.Condition{{
		Type: v1.ConditionReady, Status: status, LastTransitionTime: metav1.NewTime(s.Now), Reason: string(reason), Message: message,
	}}
}

// name gives a new assignment its name.
func (s Snapshot) name(desired *v1.AzureAssignedIdentity) {
	desired.Name = s.plainName(desired.Spec.AzureIdentityRef.Name)
	if len(desired.Name) > validation.DNS1123SubdomainMaxLength || s.Taken(desired.Namespace, desired.Name) {
		desired.Name = hashed(desired.Name, s.Pod)
	}
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
