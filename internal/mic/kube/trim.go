package kube

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// What is trimmed must never be written back whole: an Update would take away
// what is not here. Everything that is read from the cache is changed by a patch
// of the difference, and lists that such a patch replaces, the finalizers and
// conditions, are kept whole.

func trimmed[T any](trim func(T) T) toolscache.TransformFunc {
	return func(object any) (any, error) {
		if typed, ok := object.(T); ok {
			return trim(typed), nil
		}
		return object, nil // the marker of a deletion that was missed
	}
}

// trimMeta keeps what tells an object and its versions apart, and its age.
func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
	}
}

// only returns the one label or annotation, if it is there.
func only(all map[string]string, key string) map[string]string {
	if value, ok := all[key]; ok {
		return map[string]string{key: value}
	}
	return nil
}

// trimPod keeps what an assignment depends on, and by what its name was made up.
func trimPod(pod *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, GenerateName: pod.GenerateName, UID: pod.UID,
			ResourceVersion: pod.ResourceVersion, DeletionTimestamp: pod.DeletionTimestamp,
			Labels: only(pod.Labels, v1.PodLabel),
		},
		Spec:   corev1.PodSpec{NodeName: pod.Spec.NodeName},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, Conditions: scheduled(pod)},
	}
}

// scheduled keeps when the pod was bound to its node.
func scheduled(pod *corev1.Pod) []corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return []corev1.PodCondition{{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	return nil
}

// trimNode keeps what leads to the node's virtual machine or scale set, and its
// taints, of which one may be the startup taint.
func trimNode(node *corev1.Node) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
		Spec:       corev1.NodeSpec{ProviderID: node.Spec.ProviderID, Taints: node.Spec.Taints},
	}
}

func trimIdentity(object *v1.AzureIdentity) *v1.AzureIdentity {
	out := &v1.AzureIdentity{ObjectMeta: trimMeta(object.ObjectMeta), Spec: object.Spec}
	out.Annotations = only(object.Annotations, v1.BehaviorAnnotation)
	out.Spec.Metadata = nil
	out.Status.Conditions = object.Status.Conditions
	return out
}

func trimBinding(object *v1.AzureIdentityBinding) *v1.AzureIdentityBinding {
	out := &v1.AzureIdentityBinding{ObjectMeta: trimMeta(object.ObjectMeta), Spec: object.Spec}
	out.Spec.Metadata = nil
	out.Status.Conditions = object.Status.Conditions
	return out
}

// trimAssignment trims the copies too: the old controller's hold all of their
// objects' metadata.
func trimAssignment(object *v1.AzureAssignedIdentity) *v1.AzureAssignedIdentity {
	out := &v1.AzureAssignedIdentity{ObjectMeta: trimMeta(object.ObjectMeta), Spec: object.Spec, Status: object.Status}
	out.Labels, out.Finalizers = only(object.Labels, v1.NodeNameLabel), object.Finalizers
	out.Spec.Metadata, out.Spec.Replicas, out.Status.Metadata = nil, nil, nil
	if ref := object.Spec.AzureIdentityRef; ref != nil {
		out.Spec.AzureIdentityRef = trimIdentity(ref)
		out.Spec.AzureIdentityRef.Status = v1.AzureIdentityStatus{}
	}
	if ref := object.Spec.AzureBindingRef; ref != nil {
		out.Spec.AzureBindingRef = trimBinding(ref)
		out.Spec.AzureBindingRef.Status = v1.AzureIdentityBindingStatus{}
	}
	return out
}
