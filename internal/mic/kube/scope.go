// Package kube says what the controller keeps of the cluster in memory, and how
// its parts look things up there: an event costs what it touches, never a walk
// over the cluster.
//
// It must not decide anything about what it finds.
package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// NewScheme returns the kinds that the controller reads and writes.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("registering kinds: %w", err)
		}
	}
	return scheme, nil
}

// Scope is what is kept in memory: of pods, those with the label aadpodidbinding
// only, as the API server filters them; of every object, the fields in use only;
// AzureIdentityAttachments of the controller's own namespace only.
func Scope(namespace string) (cache.Options, error) {
	labelled, err := labels.NewRequirement(v1.PodLabel, selection.Exists, nil)
	if err != nil {
		return cache.Options{}, fmt.Errorf("selecting pods: %w", err)
	}
	return cache.Options{
		// A kind that is not listed here is a mistake: it would be cached whole.
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:                 {Label: labels.NewSelector().Add(*labelled), Transform: trimPod},
			&corev1.Node{}:                {Transform: trimNode},
			&v1.AzureIdentity{}:           {},
			&v1.AzureIdentityBinding{}:    {},
			&v1.AzureAssignedIdentity{}:   {},
			&v1.AzureIdentityAttachment{}: {Namespaces: map[string]cache.Config{namespace: {}}},
		},
	}, nil
}

// trimPod keeps what an assignment depends on.
func trimPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			ResourceVersion: pod.ResourceVersion, DeletionTimestamp: pod.DeletionTimestamp,
			Labels: map[string]string{v1.PodLabel: pod.Labels[v1.PodLabel]},
		},
		Spec:   corev1.PodSpec{NodeName: pod.Spec.NodeName},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, Conditions: scheduled(pod)},
	}, nil
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

// trimNode keeps what leads to the node's virtual machine or scale set.
func trimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
		Spec:       corev1.NodeSpec{ProviderID: node.Spec.ProviderID},
	}, nil
}
