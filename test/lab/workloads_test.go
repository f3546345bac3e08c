//go:build e2e

package lab_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// TestTwentyPods: 20 pods on 3 identities, one of them wherever the scheduler
// likes, the others on some nodes only. Exactly what the pods of a node need is
// on its scale set or virtual machine, and what others attached stays.
func TestTwentyPods(t *testing.T) {
	before, resourceOf := quiet(t), resources(t)
	namespace := newNamespace(t)
	byHand := newIdentity(t, namespace, "by-hand")
	for _, resource := range resourceOf {
		attachByHand(t, resource, byHand)
		before = before.with(resource, byHand)
	}
	identities := map[string]model.Identity{}
	for _, name := range []string{"anywhere", "first", "others"} {
		identities[name] = newIdentity(t, namespace, name)
		bind(t, namespace, name, identities[name])
	}
	start := journalEnd(t)
	pods := createTwenty(t, namespace)

	want := before
	for i := range pods {
		pods[i] = awaitPod(t, pods[i], corev1.PodRunning)
		want = want.with(resourceOf[pods[i].Spec.NodeName], identities[pods[i].Labels[v1.PodLabel]])
	}
	for _, pod := range pods {
		awaitAssigned(t, pod, pod.Labels[v1.PodLabel])
	}
	awaitAttached(t, want)
	wantFewPatches(t, start, want)
	for _, pod := range onePerNodeAndIdentity(pods) {
		wantToken(t, pod, identities[pod.Labels[v1.PodLabel]], "")
	}

	start = journalEnd(t)
	if err := lab.Kube.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace), client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, before)
	wantFewPatches(t, start, before)
	for _, request := range requests(t, start) {
		for _, removed := range request.Removed {
			if strings.EqualFold(removed, byHand.ID) {
				t.Errorf("what was attached by hand was removed: %s", request)
			}
		}
	}
}

// createTwenty creates the pods all at once, as rollouts do.
func createTwenty(t *testing.T, namespace string) []*corev1.Pod {
	t.Helper()
	var pods []*corev1.Pod
	for i := range 20 {
		place := []struct{ selector, node string }{
			{"anywhere", ""}, {"first", "node1"}, {"others", "node2"}, {"anywhere", ""}, {"others", "node3"},
		}[i%5]
		pod := newPod(namespace, fmt.Sprintf("pod-%02d", i), place.selector, place.node)
		if err := lab.Kube.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		pods = append(pods, pod)
	}
	return pods
}

// wantFewPatches checks that a burst of pods came in few requests: the first pod
// may be ahead of the rest, and a pod may start late.
func wantFewPatches(t *testing.T, start uint64, resources attachments) {
	t.Helper()
	for resource := range resources {
		count := 0
		for _, request := range requests(t, start) {
			if request.Surface == journal.ARM && request.Method == http.MethodPatch && strings.EqualFold(request.Path, resource) {
				count++
			}
		}
		if t.Logf("%d requests changed %s", count, resource); count < 1 || count > 3 {
			t.Errorf("%d requests changed %s, want 1 to 3", count, resource)
		}
	}
}

func onePerNodeAndIdentity(pods []*corev1.Pod) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, pod := range pods {
		out[pod.Spec.NodeName+"/"+pod.Labels[v1.PodLabel]] = pod
	}
	return out
}

// TestInitContainer: the token is there before the main container starts, with
// an identity that is on no node yet.
func TestInitContainer(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "init")
	bind(t, namespace, "init", identity)
	trusting, vault := trust(t, namespace), newVault(t, namespace, identity)
	for node := range resources(t) {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			pod := newPod(namespace, node, "init", node)
			pod.Spec.InitContainers = []corev1.Container{demo(vault)}
			trusting(&pod.Spec)
			pod = runPod(t, pod)
			wantSecretRead(t, pod)
			if restarts := pod.Status.InitContainerStatuses[0].RestartCount; restarts != 0 {
				t.Errorf("the init container needed %d restarts", restarts)
			}
		})
	}
}

// TestShortJob: a Job that asks for a token as soon as it runs, reads a secret
// and ends at once. Its finished pod has the identity no more.
func TestShortJob(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "job")
	bind(t, namespace, "job", identity)
	trusting, vault := trust(t, namespace), newVault(t, namespace, identity)
	for node := range resources(t) {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			job := newPod(namespace, "", "job", node)
			job.Spec.RestartPolicy = corev1.RestartPolicyNever
			job.Spec.Containers = []corev1.Container{demo(vault)}
			trusting(&job.Spec)
			runJob(t, job, "cold-"+node) // the identity is not on the node

			awaitAssigned(t, runPod(t, newPod(namespace, "holder-"+node, "job", node)), "job")
			runJob(t, job, "warm-"+node) // another pod has it already
		})
	}
}

// runJob runs the pod as a Job, which may not fail once.
func runJob(t *testing.T, template *corev1.Pod, name string) {
	t.Helper()
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: template.Namespace, Name: name},
		Spec: batchv1.JobSpec{BackoffLimit: new(int32), Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec,
		}},
	}
	if err := lab.Kube.Create(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	pod := await(t, &corev1.PodList{}, "job "+name+" ends", func(p *corev1.Pod) bool {
		return p.Labels[batchv1.JobNameLabel] == name && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed)
	}, client.InNamespace(job.Namespace))
	wantSecretRead(t, pod)
	state := pod.Status.ContainerStatuses[0].State.Terminated
	t.Logf("job %s ran for %s, with exit code %d", name, state.FinishedAt.Sub(state.StartedAt.Time), state.ExitCode)
	if pod.Status.Phase != corev1.PodSucceeded {
		t.Errorf("the job's pod is %s", pod.Status.Phase)
	}
	awaitGone(t, of(pod))
}

// TestHostNetworkPod: what a pod of the node's own network asks goes to the real
// metadata service, untouched: it may have the nodes' identity, and its own since
// that is on the node.
func TestHostNetworkPod(t *testing.T) {
	t.Parallel()
	namespace, nodes := newNamespace(t), nodesIdentity()
	identity := newIdentity(t, namespace, "host")
	bind(t, namespace, "host", identity)
	for node := range resources(t) {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			pod := newPod(namespace, node, "host", node)
			pod.Spec.HostNetwork = true
			pod = runPod(t, pod)
			awaitAssigned(t, pod, "host")
			for _, want := range []model.Identity{nodes, identity} {
				query, start := "&client_id="+want.ClientID, journalEnd(t)
				wantToken(t, pod, want, query)
				wantAsked(t, start, pod.Status.HostIP, query)
			}
		})
	}
}
