// Package kube says what the controller keeps of the cluster in memory, and how
// its parts look things up there: an event costs what it touches, never a walk
// over the cluster.
//
// It must not decide anything about what it finds.
package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// NewScheme returns the kinds that the controller reads and writes.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1.AddToScheme} {
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
			&corev1.Pod{}:                 {Label: labels.NewSelector().Add(*labelled), Transform: trimmed(trimPod)},
			&corev1.Node{}:                {Transform: trimmed(trimNode)},
			&v1.AzureIdentity{}:           {Transform: trimmed(trimIdentity)},
			&v1.AzureIdentityBinding{}:    {Transform: trimmed(trimBinding)},
			&v1.AzureAssignedIdentity{}:   {Transform: trimmed(trimAssignment)},
			&v1.AzureIdentityAttachment{}: {Namespaces: map[string]cache.Config{namespace: {}}},
		},
	}, nil
}
