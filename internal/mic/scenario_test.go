package mic_test

import (
	"fmt"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

// TestScenarios plays scenes in one world with one controller, at the same time,
// as a cluster does.
func TestScenarios(t *testing.T) {
	w := newWorld(t, azuresim.Config{})
	run(t, w.options(t))
	for i, test := range []struct {
		name string
		play func(*testing.T, *scene)
	}{
		{"a pod is assigned with one patch", onePatch},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.play(t, w.scene(t, fmt.Sprintf("scene-%d", i)))
		})
	}
}

func onePatch(t *testing.T, s *scene) {
	_, binding := s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	a := s.assigned(t, pod)
	if want := fmt.Sprintf("web-%s-demo", s.ns); a.Name != want || a.Namespace != "default" || a.Labels["nodename"] != s.ns+"-node-0" {
		t.Errorf("got %s/%s with labels %v, want default/%s", a.Namespace, a.Name, a.Labels, want)
	}
	s.present(t, "demo")
	patches := s.requests("PATCH")
	if len(patches) != 1 || patches[0].IfMatch == "" {
		t.Errorf("got patches %v, want one with If-Match", patches)
	}
	s.event(t, "AzureIdentityBinding", binding.Name, "binding applied", "web")
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding removed", "web")
}
