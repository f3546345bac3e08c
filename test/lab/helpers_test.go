//go:build e2e

package lab_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

const (
	subscription = "/subscriptions/11111111-2222-4333-8444-555555555555"
	// identityGroup is where MIC may assign identities from.
	identityGroup = subscription + "/resourceGroups/lab"
	pauseImage    = "lab.local/aad-pod-identity/pause:dev"
	demoImage     = "lab.local/aad-pod-identity/demo:dev"
	tokenURL      = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
)

// newNamespace makes a namespace for the test, which goes with it.
func newNamespace(t *testing.T) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	if err := lab.Kube.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	await(t, &corev1.ServiceAccountList{}, "pods may be created in "+namespace.Name, func(a *corev1.ServiceAccount) bool {
		return a.Name == "default"
	}, client.InNamespace(namespace.Name))
	t.Cleanup(func() {
		if err := lab.Kube.Delete(context.WithoutCancel(t.Context()), namespace); err != nil {
			t.Error(err)
		}
	})
	return namespace.Name
}

// newIdentity makes a managed identity in Azure, with a name of the test's own.
func newIdentity(t *testing.T, namespace, name string) model.Identity {
	t.Helper()
	identity, err := lab.Sim.AddIdentity(t.Context(), model.Identity{
		ID: identityGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + namespace + "-" + name,
	})
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func apply(t *testing.T, manifest string, args ...any) {
	t.Helper()
	if err := objects.Apply(t.Context(), lab.Kube, fmt.Sprintf(manifest, args...)); err != nil {
		t.Fatal(err)
	}
}

// bind creates an AzureIdentity and a binding of the same name and selector.
func bind(t *testing.T, namespace, name string, identity model.Identity) {
	t.Helper()
	apply(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: %[1]s, namespace: %[2]s}
spec: {type: 0, resourceID: %[3]s, clientID: %[4]s}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: %[1]s, namespace: %[2]s}
spec: {azureIdentity: %[1]s, selector: %[1]s}
`, name, namespace, identity.ID, identity.ClientID)
}

// newPod returns a pod that does nothing, for edits before it is created. An
// empty selector leaves the label out; an empty node leaves it to the scheduler.
func newPod(namespace, name, selector, node string) *corev1.Pod {
	now := int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &now,
			Containers: []corev1.Container{{Name: "main", Image: pauseImage, ImagePullPolicy: corev1.PullNever}},
		},
	}
	if selector != "" {
		pod.Labels[v1.PodLabel] = selector
	}
	return pod
}

// runPod creates a pod and waits until it runs.
func runPod(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	if err := lab.Kube.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return awaitPod(t, pod, corev1.PodRunning)
}

func awaitPod(t *testing.T, pod *corev1.Pod, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	return await(t, &corev1.PodList{}, fmt.Sprintf("pod %s is %s", pod.Name, phase), func(p *corev1.Pod) bool {
		return p.Name == pod.Name && p.Status.Phase == phase && p.Status.PodIP != ""
	}, client.InNamespace(pod.Namespace))
}

func await[T client.Object](t *testing.T, list client.ObjectList, what string, want func(T) bool, options ...client.ListOption) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	object, err := objects.Await(ctx, lab.Kube, list, want, options...)
	if err != nil {
		t.Fatalf("waiting: %s: %v", what, err)
	}
	return object
}

// awaitAssigned waits until every identity of the pod named is Assigned.
func awaitAssigned(t *testing.T, pod *corev1.Pod, identity string) {
	t.Helper()
	await(t, &v1.AzureAssignedIdentityList{}, pod.Name+" has "+identity, func(a *v1.AzureAssignedIdentity) bool {
		return a.Spec.Pod == pod.Name && a.Spec.PodNamespace == pod.Namespace && a.Spec.AzureIdentityRef.Name == identity && a.Status.Status == v1.AssignedIDAssigned
	})
}

// inPod runs a program of this machine in a pod's network, as `lab exec` does.
func inPod(ctx context.Context, pod *corev1.Pod, command ...string) (string, error) {
	cmd := lab.Command(ctx, append([]string{"exec", "-n", pod.Namespace, pod.Name, "--"}, command...)...)
	var out, words strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, words.String())
	}
	return out.String(), nil
}

// curl asks the metadata address from a pod; it returns the status and the body.
func curl(t *testing.T, pod *corev1.Pod, url string, headers ...string) (status, body string) {
	t.Helper()
	command := []string{"curl", "--silent", "--max-time", "20", "--write-out", "\n%{http_code}"}
	for _, header := range headers {
		command = append(command, "--header", header)
	}
	out, err := inPod(t.Context(), pod, append(command, url)...)
	end := strings.LastIndexByte(out, '\n')
	if end < 0 {
		t.Fatalf("curl in %s: %v: %q", pod.Name, err, out)
	}
	return out[end+1:], out[:end] // 000 is no answer at all
}
