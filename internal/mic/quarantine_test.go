package mic_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

// crowd makes n AzureIdentities with bindings of one selector. The managed
// identities of the bad ones do not exist.
func (s *scene) crowd(t *testing.T, n int, bad ...string) (names []string) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("id-%03d", i)
		names = append(names, name)
		clientID := micClientID
		if !slices.Contains(bad, name) {
			clientID = s.managed(t, name)
		}
		s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: name}, Spec: v1.AzureIdentitySpec{ResourceID: s.id(name), ClientID: clientID}})
		s.bind(t, name, "all")
	}
	return names
}

// follow watches the pod's assignments until ok says true. Listing hundreds of
// them after each event would keep the API server busy.
func (s *scene) follow(t *testing.T, pod *corev1.Pod, what string, ok func([]v1.AzureAssignedIdentity) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	seen := map[string]v1.AzureAssignedIdentity{}
	for {
		watcher, err := s.kube.Watch(ctx, &v1.AzureAssignedIdentityList{})
		if err != nil {
			t.Fatalf("waiting for %s: %v; there is:\n%s", what, err, describe(&v1.AzureAssignedIdentityList{Items: slices.Collect(maps.Values(seen))}))
		}
		clear(seen)
		for event := range watcher.ResultChan() {
			note(seen, pod, event)
			if ok(slices.Collect(maps.Values(seen))) {
				watcher.Stop()
				return
			}
		}
	}
}

// note takes an event of one of the pod's assignments in.
func note(seen map[string]v1.AzureAssignedIdentity, pod *corev1.Pod, event watch.Event) {
	a, isOne := event.Object.(*v1.AzureAssignedIdentity)
	switch {
	case !isOne || a.Spec.Pod != pod.Name || a.Spec.PodNamespace != pod.Namespace:
	case event.Type == watch.Deleted:
		delete(seen, a.Name)
	default:
		seen[a.Name] = *a
	}
}

// settled waits until of the pod's assignments exactly the bad ones are not
// Assigned, and those say that they are refused.
func (s *scene) settled(t *testing.T, pod *corev1.Pod, all int, bad ...string) {
	t.Helper()
	s.follow(t, pod, "all good ones to be Assigned", func(list []v1.AzureAssignedIdentity) bool {
		assigned, refused := 0, 0
		for _, a := range list {
			switch {
			case isAssigned(a):
				assigned++
			case slices.Contains(bad, a.Spec.AzureIdentityRef.Name) && reasonOf(a.Status.Conditions, v1.ConditionReady) == v1.ReasonIdentityRefused:
				refused++
			}
		}
		return assigned == all-len(bad) && refused == len(bad)
	})
}

// hold returns a transport that keeps the first look at the scene's resource
// until release is called.
func (s *scene) hold(inner policy.Transporter) (transport policy.Transporter, release func()) {
	released := make(chan struct{})
	return &gate{Transporter: inner, before: func(r *http.Request) error {
		if !strings.EqualFold(r.URL.Path, s.resource) {
			return nil
		}
		select {
		case <-released:
			return nil
		case <-r.Context().Done():
			return r.Context().Err()
		}
	}}, sync.OnceFunc(func() { close(released) })
}

// attachable waits until an AzureIdentity says a reason why it cannot be
// attached; none if the reason is empty.
func (s *scene) attachable(t *testing.T, name string, reason v1.Reason, words string) {
	t.Helper()
	await(t, s.world, &v1.AzureIdentityList{}, fmt.Sprintf("AzureIdentity %s to say %q", name, reason), func(l *v1.AzureIdentityList) bool {
		for _, i := range l.Items {
			if i.Namespace != s.ns || i.Name != name {
				continue
			}
			for _, c := range i.Status.Conditions {
				if c.Type == v1.ConditionAttachable {
					return v1.Reason(c.Reason) == reason && strings.Contains(c.Message, words) && c.ObservedGeneration == i.Generation
				}
			}
			return reason == "" && reasonOf(i.Status.Conditions, v1.ConditionReady) != ""
		}
		return false
	})
}

// noneDetached: nothing was ever removed from the scene's resource.
func (s *scene) noneDetached(t *testing.T) {
	t.Helper()
	for _, patch := range s.requests(http.MethodPatch) {
		if len(patch.Removed) > 0 {
			t.Errorf("%s detaches %v", patch, patch.Removed)
		}
	}
}

// TestCrowd: of 200 identities on one scale set three are bad.
func TestCrowd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	bad := []string{"id-003", "id-077", "id-180"}
	for _, test := range []struct {
		name    string
		unnamed bool
		patches int // at most
		burst   int // good ones attached by the first 12 patches, at least
	}{
		{"named", false, 6, 197},
		{"unnamed", true, 40, 120},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := w.scene(t, "crowd-"+test.name, scaleSets)
			s.crowd(t, 200, bad...)
			options := s.options(t, "--quarantine-min=10m", "--quarantine-max=10m")
			if test.unnamed {
				options.Transport = &rewriter{Transporter: options.Transport, rewrite: unnamed}
			}
			transport, release := s.hold(options.Transport)
			options.Transport = transport
			stop := run(t, options)
			pod := s.pod(t, "web", "all")
			s.follow(t, pod, "200 assignments", func(list []v1.AzureAssignedIdentity) bool { return len(list) == 200 })
			release()
			s.settled(t, pod, 200, bad...)
			patches := s.requests(http.MethodPatch)
			if len(patches) > test.patches {
				t.Errorf("it took %d patches, want %d at most", len(patches), test.patches)
			}
			if got := attachedBy(patches[:min(12, len(patches))]); got < test.burst {
				t.Errorf("%d were attached by the first 12 patches, want %d", got, test.burst)
			}
			s.noneDetached(t)
			s.inQuarantine(t, bad)
			t.Logf("%d patches", len(patches))
			stop()
		})
	}
}

func attachedBy(patches []journal.Entry) int {
	attached := 0
	for _, patch := range patches {
		if patch.Status < 300 {
			attached += len(patch.Added)
		}
	}
	return attached
}

// inQuarantine: the bad ones say why, wherever one would look.
func (s *scene) inQuarantine(t *testing.T, bad []string) {
	t.Helper()
	record := s.record(t, "that names the bad ones", func(a v1.AzureIdentityAttachment) bool {
		return len(a.Status.Refused) == len(bad) && a.Status.Isolation == nil
	})
	for _, refused := range record.Status.Refused {
		if refused.Reason != v1.ReasonIdentityRefused || refused.RetryAfter == nil || refused.Attempts != 1 || !strings.Contains(refused.Message, "az identity show") {
			t.Errorf("got %+v", refused)
		}
	}
	for _, name := range bad {
		s.attachable(t, name, v1.ReasonIdentityRefused, "az identity show")
		s.event(t, "AzureIdentity", name, string(v1.ReasonIdentityRefused), "az identity show")
	}
}

// unnamed takes the names out of ARM's refusals.
func unnamed(_ *http.Request, status int, body []byte) []byte {
	if status != http.StatusBadRequest || !strings.Contains(string(body), "FailedIdentityOperation") {
		return body
	}
	return []byte(`{"error":{"code":"FailedIdentityOperation","message":"Identity operation failed with error 'Failed to perform resource identity operation. Status: 'BadRequest'.'."}}`)
}

// TestQuarantine plays what becomes of one bad identity.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	for _, test := range []struct {
		name string
		play func(*testing.T, *scene)
	}{
		{"edited", editEndsTheWait},
		{"remembered", anotherLeaderRemembers},
		{"gone", lastPodGoes},
	} {
		t.Run(test.name, func(t *testing.T) { test.play(t, w.scene(t, "quarantine-"+test.name, scaleSets)) })
	}
}

// together is a pod with a good identity and a bad one, which wait for long.
func together(t *testing.T, s *scene) (pod *corev1.Pod, bad *v1.AzureIdentity, stop func()) {
	t.Helper()
	stop = run(t, s.options(t, "--quarantine-min=10m", "--quarantine-max=10m"))
	bad = &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "bad"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("bad"), ClientID: micClientID}}
	s.create(t, bad)
	s.bind(t, "bad", "all")
	s.identity(t, "good")
	s.bind(t, "good", "all")
	pod = s.pod(t, "web", "all")
	s.settled(t, pod, 2, "bad")
	return pod, bad, stop
}

func editEndsTheWait(t *testing.T, s *scene) {
	pod, bad, stop := together(t, s)
	s.attachable(t, "bad", v1.ReasonIdentityRefused, s.resourceID())
	// An edit that is no remedy: tried once, and refused again.
	before := len(s.requests(http.MethodPatch))
	edit(t, s.world, bad, func(i *v1.AzureIdentity) { i.Spec.ClientID = micObjectID })
	s.attachable(t, "bad", v1.ReasonIdentityRefused, "")
	if got := s.requests(http.MethodPatch)[before:]; len(got) != 1 || len(got[0].Added) != 1 {
		t.Errorf("after an edit: %v, want the one identity once", got)
	}
	clientID := s.managed(t, "bad")
	edit(t, s.world, bad, func(i *v1.AzureIdentity) { i.Spec.ClientID = clientID })
	s.settled(t, pod, 2)
	s.attachable(t, "bad", "", "")
	s.event(t, "AzureIdentity", "bad", string(v1.ReasonValid), "no longer refuses")
	s.present(t, "bad", "good")
	s.noneDetached(t)
	stop()
}

func (s *scene) resourceID() string { return strings.ToLower(s.resource) }

func anotherLeaderRemembers(t *testing.T, s *scene) {
	pod, _, stop := together(t, s)
	stop()
	before := len(s.requests(http.MethodPatch))
	stop = run(t, s.options(t, "--quarantine-min=10m", "--quarantine-max=10m"))
	s.marker(t)
	for _, patch := range s.requests(http.MethodPatch)[before:] {
		for _, added := range patch.Added {
			if strings.EqualFold(added, s.id("bad")) {
				t.Errorf("a new leader has forgotten: %s asks for %v", patch, patch.Added)
			}
		}
	}
	s.settled(t, pod, 2, "bad")
	stop()
}

// lastPodGoes: the next pod's identity does not travel with the one that was
// refused to the last, and the record says what is.
func lastPodGoes(t *testing.T, s *scene) {
	pod, bad, stop := together(t, s)
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t)
	before := len(s.requests(http.MethodPatch))
	s.settled(t, s.pod(t, "next", "all"), 2, "bad")
	if got := s.requests(http.MethodPatch)[before:]; len(got) != 1 || len(got[0].Added) != 1 {
		t.Errorf("got %v, want one patch for the good one", got)
	}
	s.delete(t, bad)
	s.record(t, "without the one that nobody names", func(a v1.AzureIdentityAttachment) bool { return synced(a) && len(a.Status.Refused) == 0 })
	stop()
}
