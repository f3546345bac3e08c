// Package caller names the pod behind a connection: a remote address in, one pod
// of this node out.
//
// It holds an index of this node's pods that somebody else feeds from a watch.
// What the API says, that a pod has an address, is a claim; the node's links show
// whether it is true now. A claim is tied to the link that carries the address,
// and void when that link is gone, until the API claims the address anew:
//
//	API: pod has address ──► claim ──► judged by the path of the moment ──► pod
//	kernel: links, routes, ────────────┘
//	        neighbours, ports
//
// It must not talk to the API server itself, nor decide what a pod may use.
package caller

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// Pod is a pod of this node, as far as the agent needs to know it.
type Pod struct {
	identity.Key
	UID            types.UID
	ServiceAccount string
	// Labels are shared with the index and only read.
	Labels map[string]string
}

// Trim leaves of a pod what this package reads, so that a cache of pods stays
// small. It fits an informer's transform; what is not a pod stays as it is.
func Trim(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	return &corev1.Pod{
		TypeMeta: pod.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Labels: pod.Labels,
			ResourceVersion: pod.ResourceVersion,
		},
		Spec: corev1.PodSpec{
			NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork, ServiceAccountName: pod.Spec.ServiceAccountName,
		},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs,
			StartTime: pod.Status.StartTime, Conditions: networkReady(pod),
		},
	}, nil
}

// networkReady returns the one condition that is read.
func networkReady(pod *corev1.Pod) []corev1.PodCondition {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReadyToStartContainers {
			return []corev1.PodCondition{{Type: condition.Type, Status: condition.Status, LastTransitionTime: condition.LastTransitionTime}}
		}
	}
	return nil
}

func podOf(pod *corev1.Pod) Pod {
	return Pod{
		Key:            identity.Key{Namespace: pod.Namespace, Name: pod.Name},
		UID:            pod.UID,
		ServiceAccount: pod.Spec.ServiceAccountName,
		Labels:         pod.Labels,
	}
}

// lives reports whether the pod runs, or is about to: init containers run while
// it is Pending.
func lives(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodPending || pod.Status.Phase == corev1.PodRunning
}

// addresses returns every address by which the pod can call. A pod of the host's
// network shares its node's and has none of its own; one that has ended has
// given its back.
func addresses(pod *corev1.Pod) ([]netip.Addr, error) {
	if pod.Spec.HostNetwork || !lives(pod) {
		return nil, nil
	}
	texts := []string{pod.Status.PodIP}
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	var out []netip.Addr
	for _, text := range texts {
		if text == "" {
			continue
		}
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("reading the addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		out = append(out, address.Unmap())
	}
	return out, nil
}
