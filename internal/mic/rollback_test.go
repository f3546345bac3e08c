package mic_test

import (
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	v1817 "github.com/aad-pod-identity/aad-pod-identity/test/legacy"
)

// TestRollback plays an upgrade, a rollback and an upgrade once more, with the
// old controller's own requests, on pods that never stop asking for tokens.
func TestRollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	s := w.scene(t, "rollback", scaleSets)
	old, err := v1817.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	s.identity(t, "demo")
	s.attach(t, "demo") // by the old controller
	var pods []*corev1.Pod
	write := func(pod *corev1.Pod, steps ...func(a v1817.Assignment) error) {
		t.Helper()
		a := v1817.Assignment{Namespace: "default", From: s.ns, Identity: "demo", Binding: "demo-demo", Pod: pod.Name, PodNamespace: s.ns, Node: s.ns + "-node-0"}
		for _, step := range steps {
			if err := step(a); err != nil {
				t.Fatal(err)
			}
		}
	}
	create := func(a v1817.Assignment) error { return old.Create(t.Context(), a) }
	state := func(value string) func(v1817.Assignment) error {
		return func(a v1817.Assignment) error { return old.SetStatus(t.Context(), a, value) }
	}
	for name, status := range map[string]string{"web": "Assigned", "ancient": ""} {
		pod := s.pod(t, name, "demo")
		write(pod, create, state(status))
		pods = append(pods, pod)
	}
	taken := s.watchForTaken(t)
	stop := run(t, s.options(t))
	s.assigned(t, s.pod(t, "new", "demo"))
	for _, pod := range pods {
		s.assignment(t, pod, "adopted", func(a v1.AzureAssignedIdentity) bool { return isAssigned(a) && len(a.Finalizers) == 0 })
	}
	taken()
	if got := s.requests(http.MethodPatch); len(got) != 0 {
		t.Errorf("what was there already was patched: %v", got)
	}
	stop()
	write(pods[0], func(a v1817.Assignment) error { return old.Update(t.Context(), a) }, state("Assigned"))
	write(pods[1], func(a v1817.Assignment) error { return old.Delete(t.Context(), a) }, create)
	run(t, s.options(t))
	for _, pod := range pods {
		s.assigned(t, pod)
		s.kill(t, pod)
		s.unassigned(t, pod)
	}
}

// watchForTaken watches the scene's assignments until the function that it
// returns is called, which fails the test if one that served was put back.
func (s *scene) watchForTaken(t *testing.T) (check func()) {
	t.Helper()
	watcher, err := s.kube.Watch(t.Context(), &v1.AzureAssignedIdentityList{})
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan string, 1)
	go func() {
		defer close(taken)
		served := map[client.ObjectKey]bool{}
		for event := range watcher.ResultChan() {
			a, ok := event.Object.(*v1.AzureAssignedIdentity)
			if !ok || a.Spec.PodNamespace != s.ns {
				continue
			}
			key := client.ObjectKeyFromObject(a)
			serves := event.Type != "DELETED" && (a.Status.Status == v1.AssignedIDAssigned || a.Status.Status == v1.AssignedIDLegacy)
			if served[key] && !serves {
				taken <- key.String() + " " + a.Status.Status
				return
			}
			served[key] = serves
		}
	}()
	return func() {
		t.Helper()
		watcher.Stop()
		for what := range taken {
			t.Errorf("taken away: %s", what)
		}
	}
}
