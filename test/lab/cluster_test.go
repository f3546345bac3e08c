//go:build e2e

package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// addBinding binds an AzureIdentity of the namespace to one more selector.
func addBinding(t *testing.T, namespace, name, identity, selector string) {
	t.Helper()
	apply(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: %[1]s, namespace: %[2]s}
spec: {azureIdentity: %[3]s, selector: %[4]s}
`, name, namespace, identity, selector)
}

// boundPod makes an identity, binds it by the name, and runs a pod on the node
// until the identity is assigned to it.
func boundPod(t *testing.T, namespace, name, node string) (*corev1.Pod, model.Identity) {
	t.Helper()
	identity := newIdentity(t, namespace, name)
	bind(t, namespace, name, identity)
	pod := runPod(t, newPod(namespace, name, name, node))
	awaitAssigned(t, pod, name)
	return pod, identity
}

// trust returns what makes the containers of a pod in the namespace trust the
// simulated Azure, as images trust the public authorities.
func trust(t *testing.T, namespace string) func(*corev1.PodSpec) {
	t.Helper()
	ca := &corev1.ConfigMap{}
	if err := lab.Kube.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "lab-azure-ca"}, ca); err != nil {
		t.Fatal(err)
	}
	copied := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: ca.Name}, Data: ca.Data}
	if err := lab.Kube.Create(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	return func(spec *corev1.PodSpec) {
		volume := corev1.Volume{Name: "azure-ca"}
		volume.ConfigMap = &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: ca.Name}}
		spec.Volumes = append(spec.Volumes, volume)
		for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
			for i := range containers {
				containers[i].Env = append(containers[i].Env, corev1.EnvVar{Name: "SSL_CERT_FILE", Value: "/azure-ca/ca.crt"})
				containers[i].VolumeMounts = append(containers[i].VolumeMounts, corev1.VolumeMount{Name: volume.Name, MountPath: "/azure-ca"})
			}
		}
	}
}

// demo is the tutorials' program: it waits for a token and reads a secret.
func demo(vault string) corev1.Container {
	return corev1.Container{
		Name: "demo", Image: demoImage, ImagePullPolicy: corev1.PullNever,
		Args: []string{"--vault-url=" + vault, "--show-value"},
	}
}

// wantSecretRead checks that the pod's demo has read the secret.
func wantSecretRead(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if text := podLog(t, pod, "demo"); !strings.Contains(text, secretValue) {
		t.Errorf("pod %s did not read the secret:\n%s", pod.Name, text)
	}
}

// podLog returns what a container wrote.
func podLog(t *testing.T, pod *corev1.Pod, container string) string {
	t.Helper()
	out, err := lab.Kubectl(t.Context(), "--namespace", pod.Namespace, "logs", pod.Name, "--container", container)
	if err != nil {
		t.Fatalf("reading the log of %s: %v: %s", pod.Name, err, out)
	}
	return out
}

// relabel gives a pod another selector.
func relabel(t *testing.T, pod *corev1.Pod, selector string) {
	t.Helper()
	before := pod.DeepCopy()
	pod.Labels[v1.PodLabel] = selector
	if err := lab.Kube.Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// awaitWarning waits for a Warning Event on the pod, with the reason.
func awaitWarning(t *testing.T, pod *corev1.Pod, reason v1.Reason) *corev1.Event {
	t.Helper()
	return await(t, &corev1.EventList{}, "a warning on pod "+pod.Name+": "+string(reason), func(e *corev1.Event) bool {
		return e.InvolvedObject.Name == pod.Name && e.Type == corev1.EventTypeWarning && e.Reason == string(reason)
	}, client.InNamespace(pod.Namespace))
}

// of matches the assignments of a pod.
func of(pod *corev1.Pod) func(*v1.AzureAssignedIdentity) bool {
	return func(a *v1.AzureAssignedIdentity) bool {
		return a.Spec.Pod == pod.Name && a.Spec.PodNamespace == pod.Namespace
	}
}

// awaitGone waits until no AzureAssignedIdentity matches.
func awaitGone(t *testing.T, match func(*v1.AzureAssignedIdentity) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var list v1.AzureAssignedIdentityList
	if err := lab.Kube.List(ctx, &list); err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for _, assigned := range list.Items {
		if match(&assigned) {
			left[assigned.Name] = true
		}
	}
	watcher, err := lab.Kube.Watch(ctx, &v1.AzureAssignedIdentityList{}, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	for len(left) > 0 {
		event, ok := <-watcher.ResultChan()
		if !ok {
			t.Fatalf("these AzureAssignedIdentities are still there: %v", left)
		}
		assigned, ok := event.Object.(*v1.AzureAssignedIdentity)
		switch {
		case !ok:
			t.Fatalf("watching AzureAssignedIdentities: %+v", event.Object)
		case event.Type != watch.Deleted && match(assigned):
			left[assigned.Name] = true
		default:
			delete(left, assigned.Name)
		}
	}
}
