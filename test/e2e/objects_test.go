package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// name is a name for objects that is the test's own.
func name(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "_", "-", " ", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
}

func newIdentity(t *testing.T, suffix string) model.Identity {
	t.Helper()
	identity, err := shared.AddIdentity(t.Context(), name(t)+suffix)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// bind creates an AzureIdentity and a binding for the selector.
func bind(t *testing.T, objectName string, identity model.Identity, selector string) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: %[1]s, namespace: default}
spec: {type: 0, resourceID: %[2]s, clientID: %[3]s}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: %[1]s, namespace: default}
spec: {azureIdentity: %[1]s, selector: %[4]s}
`, objectName, identity.ID, identity.ClientID, selector))
}

func apply(t *testing.T, manifest string) {
	t.Helper()
	if err := shared.Apply(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
}

func runPod(t *testing.T, node *world.Node, podName, selector string) *world.Pod {
	t.Helper()
	var labels map[string]string
	if selector != "" {
		labels = map[string]string{v1.PodLabel: selector}
	}
	pod, err := node.Run(t.Context(), world.NewPod("default", podName, labels))
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// awaitObject watches until an object of the list satisfies want, and returns it.
func awaitObject[T client.Object](t *testing.T, list client.ObjectList, what string, want func(T) bool, options ...client.ListOption) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	object, err := objects.Await(ctx, shared.Kube, list, want, options...)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return object
}

func awaitAssigned(t *testing.T, pod *world.Pod) {
	t.Helper()
	awaitObject(t, &v1.AzureAssignedIdentityList{}, "Assigned for "+pod.Object.Name, func(a *v1.AzureAssignedIdentity) bool {
		return a.Spec.Pod == pod.Object.Name && a.Status.Status == v1.AssignedIDAssigned
	})
}

func awaitEvent(t *testing.T, about, words string) {
	t.Helper()
	awaitObject(t, &corev1.EventList{}, "an Event on "+about+" that says "+words, func(e *corev1.Event) bool {
		return e.InvolvedObject.Name == about && e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, words)
	})
}
