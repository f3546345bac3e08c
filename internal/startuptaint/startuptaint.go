// Package startuptaint knows the taint that keeps pods off a node until the agent
// runs there, and how to take it away without touching anything else.
//
// It is pure, and shared by the controller and the agent, of which one does it.
// When to do it must not be decided here.
package startuptaint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// CheckKey refuses what cannot be the key of a taint of this project's: empty is
// allowed, and means that there is none.
func CheckKey(key string) error {
	if key == "" {
		return nil
	}
	if mistakes := validation.IsQualifiedName(key); len(mistakes) > 0 {
		return fmt.Errorf("--startup-taint-key is %q, which is no key of a taint: %s", key, strings.Join(mistakes, "; "))
	}
	// Kubernetes' own taints say what Kubernetes knows of a node.
	if prefix, _, _ := strings.Cut(key, "/"); prefix == "kubernetes.io" || strings.HasSuffix(prefix, ".kubernetes.io") {
		return fmt.Errorf("--startup-taint-key is %q: a taint of Kubernetes' own must stay", key)
	}
	return nil
}

// On reports whether a node has the taint, with any value and effect.
func On(taints []corev1.Taint, key string) bool {
	return slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.Key == key })
}

// Patch returns the JSON merge patch that takes the taint from a node as it was
// read, and nothing else; nil if it is not there. A list is replaced whole by such
// a patch, so that the API server is to refuse it, with a conflict, if the node is
// not what it was.
func Patch(node *corev1.Node, key string) ([]byte, error) {
	if !On(node.Spec.Taints, key) {
		return nil, nil
	}
	left := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool { return t.Key == key })
	if len(left) == 0 {
		left = nil // null removes the field
	}
	out, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": left},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the patch of node %s: %w", node.Name, err)
	}
	return out, nil
}
