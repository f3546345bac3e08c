package mic_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

// TestSlowResources: forty virtual machines whose requests ARM does not answer
// keep no other from being served, and what comes meanwhile goes together in the
// next request of each.
func TestSlowResources(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	s := w.scene(t, "slow", virtualMachines)
	s.identity(t, "demo")
	s.identity(t, "late")
	options := s.options(t)
	const slow = 40
	var places []*scene
	held := make(chan string, slow)
	release := make(chan struct{})
	options.Transport = &gate{Transporter: options.Transport, before: func(r *http.Request) error {
		if r.Method != http.MethodPatch || !strings.Contains(strings.ToLower(r.URL.Path), "-slow-vm-") {
			return nil
		}
		select {
		case held <- r.URL.Path:
		default:
		}
		select {
		case <-release:
			return nil
		case <-r.Context().Done():
			return r.Context().Err()
		}
	}}
	defer run(t, options)()
	var pods []*corev1.Pod
	for i := range slow {
		node := fmt.Sprintf("slow-node-vm-%d", i)
		places = append(places, s.beside(t, node, fmt.Sprintf("%s-vm-%d", s.resource, i)))
		pods = append(pods, s.podOn(t, s.ns, fmt.Sprintf("web-%d", i), "demo", node))
	}
	for range slow {
		<-held
	}
	s.assigned(t, s.pod(t, "quick", "demo"))
	first := s.podOn(t, s.ns, "late-0", "late", "slow-node-vm-0")
	close(release)
	for _, pod := range append(pods, first) {
		s.assigned(t, pod)
	}
	places[0].present(t, "demo", "late")
	for i, place := range places {
		want := 1
		if i == 0 {
			want = 2
		}
		if got := len(place.requests(http.MethodPatch)); got != want {
			t.Errorf("%s took %d patches, want %d", place.resource, got, want)
		}
	}
}
