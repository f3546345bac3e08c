// Package owner asks the API server whether the DaemonSet that an agent belongs
// to is gone or being deleted, which is the one reason for which an agent that
// ends takes its rules from the node.
//
// Whatever is not known for certain is an error, and never "gone": an agent that
// is wrong about it would open the node's own identity to every pod. The package
// must not act on its answer.
package owner

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// DaemonSet is the owner of an agent's pod.
type DaemonSet struct {
	identity.Key

	// Gone says that it is deleted, or will be once its pods have ended.
	Gone bool
}

// Find asks for the owner of a pod. It needs the right to list pods in the pod's
// namespace, and to get the DaemonSet. A DaemonSet that was deleted and made again
// under its name is not gone: it brings an agent of its own.
func Find(ctx context.Context, config *rest.Config, pod identity.Key) (DaemonSet, error) {
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return DaemonSet{}, fmt.Errorf("making a client: %w", err)
	}
	name, err := nameOf(ctx, client, pod)
	if err != nil {
		return DaemonSet{}, err
	}
	found := DaemonSet{Key: identity.Key{Namespace: pod.Namespace, Name: name}}
	set, err := client.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}).
		Namespace(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		// It was the API server that said so, of this object.
		found.Gone = true
	case err != nil:
		return DaemonSet{}, fmt.Errorf("reading DaemonSet %s: %w", found.Key, err)
	default:
		found.Gone = set.DeletionTimestamp != nil
	}
	return found, nil
}

// nameOf reads who owns the pod. It lists, since that is what an agent may do.
func nameOf(ctx context.Context, client metadata.Interface, pod identity.Key) (string, error) {
	pods, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).
		Namespace(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", pod.Name).String()})
	if err != nil {
		return "", fmt.Errorf("reading pod %s: %w", pod, err)
	}
	if len(pods.Items) != 1 {
		return "", fmt.Errorf("reading pod %s: there is no such pod", pod)
	}
	owner := metav1.GetControllerOf(&pods.Items[0])
	if owner == nil || owner.Kind != "DaemonSet" || owner.APIVersion != "apps/v1" {
		return "", fmt.Errorf("reading pod %s: it belongs to no DaemonSet", pod)
	}
	return owner.Name, nil
}
