package mic_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
)

// TestRestart stops the controller where it hurts. Its scenes follow each other:
// every one ends with nothing left on the scale set.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{ARMLatency: 1200 * time.Millisecond})
	for _, test := range []struct {
		name string
		play func(*testing.T, *scene)
	}{
		{"before-patch", stoppedBeforePatch},
		{"after-patch", stoppedAfterPatch},
		{"while-away", podGoesWhileAway},
		{"cut-off", cutOffAtStart},
		{"overtaken", overtaken},
		{"standby", standby},
	} {
		t.Run(test.name, func(t *testing.T) { test.play(t, w.scene(t, "restart-"+test.name, scaleSets)) })
	}
}

// halt returns options whose patches stop, for ever, before or after ARM sees
// them, and a channel that says so.
func (s *scene) halt(t *testing.T, after bool) (mic.Options, <-chan struct{}) {
	t.Helper()
	options := s.options(t)
	halted := make(chan struct{})
	stop := func(r *http.Request) error {
		if r.Method != http.MethodPatch {
			return nil
		}
		close(halted)
		<-r.Context().Done()
		return r.Context().Err()
	}
	g := &gate{Transporter: options.Transport}
	if after {
		g.after = stop
	} else {
		g.before = stop
	}
	options.Transport = g
	return options, halted
}

func owns(state v1.OwnershipState) func(v1.AzureIdentityAttachment) bool {
	return func(a v1.AzureIdentityAttachment) bool {
		return len(a.Spec.Owned) == 1 && a.Spec.Owned[0].State == state
	}
}

func stoppedBeforePatch(t *testing.T, s *scene) {
	s.identity(t, "demo")
	options, halted := s.halt(t, false)
	stop := run(t, options)
	pod := s.pod(t, "web", "demo")
	<-halted
	record := s.record(t, "that is attaching", owns(v1.OwnershipAttaching))
	if record.Spec.Owned[0].ETag == "" {
		t.Error("the record has no ETag")
	}
	stop()
	run(t, s.options(t))
	s.assigned(t, pod)
	s.kill(t, pod)
	s.present(t)
	if got := len(s.requests(http.MethodPatch)); got != 2 {
		t.Errorf("ARM saw %d patches, want one to attach and one to detach", got)
	}
}

func stoppedAfterPatch(t *testing.T, s *scene) {
	s.identity(t, "demo")
	options, halted := s.halt(t, true)
	stop := run(t, options)
	pod := s.pod(t, "web", "demo")
	<-halted
	stop()
	s.record(t, "that is attaching", owns(v1.OwnershipAttaching))
	run(t, s.options(t))
	s.assigned(t, pod)
	for _, e := range s.sim.Journal.Since(0) {
		if s.ours(e, http.MethodPatch) && e.Status == http.StatusConflict {
			t.Errorf("the running operation was run into: %s", e)
		}
	}
	s.record(t, "that is owned", owns(v1.OwnershipOwned))
	s.kill(t, pod)
	s.present(t)
	if got := len(s.requests(http.MethodPatch)); got != 2 {
		t.Errorf("ARM saw %d patches, want one to attach and one to detach", got)
	}
}

func podGoesWhileAway(t *testing.T, s *scene) {
	s.identity(t, "demo")
	stop := run(t, s.options(t))
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	stop()
	s.kill(t, pod)
	run(t, s.options(t))
	s.unassigned(t, pod)
	s.present(t)
}

// cutOffAtStart: ARM cannot be reached when the controller starts.
func cutOffAtStart(t *testing.T, s *scene) {
	s.identity(t, "demo")
	options := s.options(t)
	var open atomic.Bool
	options.Transport = &gate{Transporter: options.Transport, before: func(r *http.Request) error {
		if open.Load() {
			return nil
		}
		return &unreachableError{r.URL.Host}
	}}
	run(t, options)
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonARMUnavailable)
	open.Store(true)
	s.assigned(t, pod)
	s.kill(t, pod)
	s.present(t)
}

type unreachableError struct{ host string }

func (e *unreachableError) Error() string { return "dialing " + e.host + ": no route to host" }

// overtaken: somebody else attaches the same identity between our look and our
// patch. It is theirs, and stays.
func overtaken(t *testing.T, s *scene) {
	s.identity(t, "demo")
	options := s.options(t)
	var once atomic.Bool
	options.Transport = &gate{Transporter: options.Transport, before: func(r *http.Request) error {
		if r.Method != http.MethodPatch || !strings.EqualFold(r.URL.Path, s.resource) || once.Swap(true) {
			return nil
		}
		_, err := s.sim.State.Attach(model.Attachment{ScaleSet: s.resource, Identity: s.id("demo")})
		return err
	}}
	run(t, options)
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.marker(t)
	s.present(t, "demo", "marker")
}

// standby: a second replica is ready, does nothing, and takes over.
func standby(t *testing.T, s *scene) {
	ports := []string{freePort(t), freePort(t), freePort(t)}
	stop := run(t, s.options(t, "--http-probe-port="+ports[0], "--prometheus-port="+ports[1]))
	is := func(text string) func(int, string) bool {
		return func(status int, body string) bool { return status == http.StatusOK && body == text }
	}
	get(t, "http://127.0.0.1:"+ports[0]+"/healthz", is("Active"))
	run(t, s.options(t, "--http-probe-port="+ports[2]))
	get(t, "http://127.0.0.1:"+ports[2]+"/readyz", is("ok"))
	get(t, "http://127.0.0.1:"+ports[2]+"/healthz", is("Not Active"))
	s.identity(t, "demo")
	first := s.pod(t, "first", "demo")
	s.assigned(t, first)
	s.beside(t, s.ns+"-vm", strings.Replace(s.resource, scaleSets, virtualMachines, 1))
	onVM := s.podOn(t, s.ns, "on-vm", "demo", s.ns+"-vm")
	s.assigned(t, onVM)
	for _, name := range []string{
		"aadpodidentity_assigned_identity_addition_count 2", "aadpodidentity_mic_new_leader_election_count 1",
		`aadpodidentity_cloud_provider_operations_duration_seconds_count{operation_type="vmss_update"} 1`, "mic_assignment_seconds_count 2",
		`aadpodidentity_cloud_provider_operations_duration_seconds_count{operation_type="vm_update"} 1`,
		`aadpodidentity_cloud_provider_operations_duration_seconds_count{operation_type="vm_get"} 1`,
		`mic_owned_identities{kind="ScaleSet"} `, `mic_owned_identities{kind="VirtualMachine"} 1`, `mic_quarantined_identities{kind="ScaleSet"} 0`,
		"mic_pod_assignment_seconds_count 0", // these pods do not say when they were scheduled
		"workqueue_depth",
	} {
		get(t, "http://127.0.0.1:"+ports[1]+"/metrics", func(status int, body string) bool {
			return status == http.StatusOK && strings.Contains(body, name)
		})
	}
	if status, _ := fetch(t, "http://127.0.0.1:"+ports[0]+"/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("pprof answers %d", status)
	}
	stop()
	get(t, "http://127.0.0.1:"+ports[2]+"/healthz", is("Active"))
	second := s.pod(t, "second", "demo")
	s.assigned(t, second)
	s.kill(t, first)
	s.kill(t, second)
	s.kill(t, onVM)
	s.present(t)
}
