package watch

import (
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// The names of the indexes.
const (
	bySelector   = "selector"
	byClientID   = "clientID"
	byResourceID = "resourceID"
	byPod        = "pod"
)

var _ binding.Catalog = (*Store)(nil)

// Bindings returns the bindings that have the selector in either spelling.
func (s *Store) Bindings(selector string) []*v1.AzureIdentityBinding {
	return indexed[*v1.AzureIdentityBinding](s.bindings, bySelector, selector)
}

// Identity returns the AzureIdentity of that name, or nil.
func (s *Store) Identity(key identity.Key) *v1.AzureIdentity {
	object, _, err := s.identities.GetIndexer().GetByKey(key.String())
	if err != nil {
		return nil // an in-memory store has no errors
	}
	id, _ := object.(*v1.AzureIdentity)
	return id
}

// HasIdentity reports whether an AzureIdentity of the cluster has the client ID,
// in any case, or the resource ID. Zero arguments are not looked for.
func (s *Store) HasIdentity(clientID string, resourceID armid.ID) bool {
	if clientID != "" && len(indexed[*v1.AzureIdentity](s.identities, byClientID, strings.ToLower(clientID))) > 0 {
		return true
	}
	return !resourceID.IsZero() && len(indexed[*v1.AzureIdentity](s.identities, byResourceID, resourceID.String())) > 0
}

// Assigned returns the assignments that name the pod, of any node and state.
func (s *Store) Assigned(pod identity.Key) []*v1.AzureAssignedIdentity {
	if s.assigned == nil {
		return nil
	}
	return indexed[*v1.AzureAssignedIdentity](s.assigned, byPod, pod.String())
}

// Exceptions returns the exceptions of a namespace.
func (s *Store) Exceptions(namespace string) []*v1.AzurePodIdentityException {
	return indexed[*v1.AzurePodIdentityException](s.exceptions, cache.NamespaceIndex, namespace)
}

func indexed[T any](informer cache.SharedIndexInformer, index, value string) []T {
	objects, err := informer.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil // the index is one of ours
	}
	out := make([]T, 0, len(objects))
	for _, object := range objects {
		if typed, ok := object.(T); ok {
			out = append(out, typed)
		}
	}
	return out
}

func selectors(object any) ([]string, error) {
	b, ok := object.(*v1.AzureIdentityBinding)
	if !ok {
		return nil, nil
	}
	return set(b.Spec.Selector, b.Spec.LegacySelector), nil
}

func clientIDs(object any) ([]string, error) {
	id, ok := object.(*v1.AzureIdentity)
	if !ok {
		return nil, nil
	}
	return set(strings.ToLower(id.Spec.ClientID), strings.ToLower(id.Spec.LegacyClientID)), nil
}

func resourceIDs(object any) ([]string, error) {
	id, ok := object.(*v1.AzureIdentity)
	if !ok {
		return nil, nil
	}
	var out []string
	for _, text := range set(id.Spec.ResourceID, id.Spec.LegacyResourceID) {
		if parsed, err := armid.Parse(text); err == nil {
			out = append(out, parsed.String())
		}
	}
	return out, nil
}

func podOf(object any) ([]string, error) {
	assigned, ok := object.(*v1.AzureAssignedIdentity)
	if !ok {
		return nil, nil
	}
	return []string{identity.Key{Namespace: assigned.Spec.PodNamespace, Name: assigned.Spec.Pod}.String()}, nil
}

// set returns the values that are there, each once.
func set(a, b string) []string {
	switch {
	case a == "" && b == "":
		return nil
	case a == "" || a == b:
		return []string{b}
	case b == "":
		return []string{a}
	}
	return []string{a, b}
}

// trim leaves out of an object what nobody here reads.
func trim(object any) (any, error) {
	if meta, ok := object.(metav1.Object); ok {
		meta.SetManagedFields(nil)
	}
	return object, nil
}

// signal wakes whoever waits for any change.
type signal struct {
	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, at every change
}

func newSignal() *signal { return &signal{changed: make(chan struct{})} }

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *signal) raise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Pods is told of this node's pods. Its methods are called one at a time.
type Pods interface {
	Set(pod *corev1.Pod) error
	Delete(key identity.Key)
}
