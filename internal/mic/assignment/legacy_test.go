package assignment_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/legacy"
)

// TestBesideTheOldController plays what an upgrade, a rollback and the moments
// between them do to the assignments, with the old controller's own requests.
func TestBesideTheOldController(t *testing.T) {
	w := newWorld(t)
	old, err := legacy.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		play func(*testing.T, *world, *legacy.Client)
	}{
		{"adopted", adopted},
		{"rolled-back", rolledBack},
		{"interleaved", interleaved},
		{"behind", createdBehindItsBack},
		{"principal", principalAdopted},
	} {
		t.Run(test.name, func(t *testing.T) { test.play(t, w, old) })
	}
}

// of is the old controller's assignment of a pod of the scene.
func of(scene, pod string) legacy.Assignment {
	return legacy.Assignment{Namespace: "default", From: scene, Identity: "demo", Binding: "demo", Pod: pod, PodNamespace: scene, Node: "n0"}
}

// write makes the old controller take steps: create, a state, put, delete, strike.
func write(t *testing.T, old *legacy.Client, a legacy.Assignment, steps ...string) {
	t.Helper()
	for _, step := range steps {
		var err error
		switch step {
		case "create":
			err = old.Create(t.Context(), a)
		case "put":
			err = old.Update(t.Context(), a)
		case "delete":
			err = old.Delete(t.Context(), a)
		case "strike":
			_, err = old.Strike(t.Context(), a)
		default:
			err = old.SetStatus(t.Context(), a, strings.TrimPrefix(step, "state "))
		}
		if err != nil {
			t.Fatalf("%s %s: %v", step, a.Name(), err)
		}
	}
}

// tokens is what an old agent would ask tokens for.
func tokens(t *testing.T, old *legacy.Client, a legacy.Assignment) []string {
	t.Helper()
	out, err := old.Tokens(t.Context(), a.Node, a.PodNamespace, a.Pod)
	if err != nil {
		t.Error(err)
	}
	return out
}

// adopted: an upgrade. What the old controller left is kept as it is, to the
// letter, but for its finalizer; no pod is without its token for a moment.
func adopted(t *testing.T, w *world, old *legacy.Client) {
	w.namespace(t, "adopted", "demo")
	edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "adopted", Name: "demo"}}, func(o *v1.AzureIdentity) {
		o.Spec.ResourceID, o.Spec.ClientID = strings.Replace(resourceID, "resourceGroups", "RESOURCEGROUPS", 1), "AbC"
		o.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}"}
	})
	states := map[string][]string{
		"assigned":   {"create", "state Assigned"},
		"stateless":  {"create", "state "},
		"created":    {"create"},
		"unassigned": {"create", "state Assigned", "state Unassigned"},
		"dying":      {"create", "state Assigned", "state Unassigned", "strike"},
	}
	before := map[string]legacy.Object{}
	for pod, steps := range states {
		w.pod(t, "adopted", pod, "n0")
		write(t, old, of("adopted", pod), steps...)
		before[pod] = get(t, old, of("adopted", pod))
	}
	// The identity as it is spelled later, with other metadata.
	edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "adopted", Name: "demo"}}, func(o *v1.AzureIdentity) {
		o.Spec.ResourceID, o.Labels = strings.ToLower(resourceID), map[string]string{"team": "blue"}
	})
	gap := w.watchForGap(t, "adopted")
	sent, _ := w.run(t, false)
	w.assignments(t, "adopted", "all, without the finalizer", func(all []v1.AzureAssignedIdentity) bool {
		for _, a := range all {
			if len(a.Finalizers) > 0 || a.Status.Status == v1.AssignedIDUnassigned {
				return false
			}
		}
		return len(all) == len(states)
	})
	gap()
	for _, pod := range []string{"assigned", "stateless", "created"} {
		after := get(t, old, of("adopted", pod))
		for _, part := range []string{"spec", "status"} {
			if diff := cmp.Diff(before[pod][part], after[part]); diff != "" {
				t.Errorf("%s: the %s was rewritten (-before +after):\n%s", pod, part, diff)
			}
		}
	}
	for pod, want := range map[string]int{"assigned": 1, "stateless": 1, "created": 0, "unassigned": 0, "dying": 0} {
		if got := tokens(t, old, of("adopted", pod)); len(got) != want {
			t.Errorf("%s: an old agent has %v", pod, got)
		}
	}
	w.marker(t, "adopted")
	if got := sent.sent("POST", assignedKind); len(got) != 2 { // the dying one's and the marker's
		t.Errorf("it created %v", got)
	}
}

func get(t *testing.T, old *legacy.Client, a legacy.Assignment) legacy.Object {
	t.Helper()
	out, err := old.Get(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rolledBack: what ours made serves under the old agent, and the old controller's
// requests do to it what they do to its own.
func rolledBack(t *testing.T, w *world, old *legacy.Client) {
	w.namespace(t, "rollback", "demo")
	_, stop := w.run(t, false)
	pod := w.pod(t, "rollback", "web", "n0")
	w.only(t, "rollback")
	a := of("rollback", "web")
	if got := tokens(t, old, a); len(got) != 0 {
		t.Errorf("an old agent has %v before Azure does", got)
	}
	w.attached(t, "rollback")
	if got := tokens(t, old, a); len(got) != 1 || got[0] != "ABC" {
		t.Errorf("an old agent has %v", got)
	}
	stop()
	write(t, old, a, "put") // the old one sees other resource versions, and starts again
	if got := tokens(t, old, a); len(got) != 0 {
		t.Errorf("an old agent has %v", got)
	}
	write(t, old, a, "state Assigned")
	if got := tokens(t, old, a); len(got) != 1 {
		t.Errorf("an old agent has %v", got)
	}
	write(t, old, a, "delete")
	if _, err := old.Get(t.Context(), a); !legacy.Is(err, http.StatusNotFound) {
		t.Errorf("after the old controller's delete: %v", err)
	}
	write(t, old, a, "create", "state Assigned") // and forward once more
	gap := w.watchForGap(t, "rollback")
	w.run(t, false)
	w.assignments(t, "rollback", "the adopted one", func(all []v1.AzureAssignedIdentity) bool {
		return len(all) == 1 && len(all[0].Finalizers) == 0 && all[0].Status.Status == v1.AssignedIDAssigned
	})
	gap()
	w.kill(t, pod)
	w.assignments(t, "rollback", "none", count(0))
}

// interleaved: both are at it for a moment, as when a lease is lost in
// mid-request. Neither breaks on what the other did, and ours has the last word.
func interleaved(t *testing.T, w *world, old *legacy.Client) {
	w.namespace(t, "both", "demo")
	w.run(t, false)
	pod := w.pod(t, "both", "web", "n0")
	first := w.only(t, "both")
	a := of("both", "web")
	if err := old.Create(t.Context(), a); !legacy.Is(err, http.StatusConflict) {
		t.Errorf("a second one of the name: %v", err)
	}
	stale := get(t, old, a)
	w.attached(t, "both")
	stale["metadata"].(legacy.Object)["finalizers"] = []any{legacy.Finalizer}
	if err := old.Release(t.Context(), a, stale); !legacy.Is(err, http.StatusConflict) {
		t.Errorf("a PUT of what was read before our write: %v", err)
	}
	serving := func(all []v1.AzureAssignedIdentity) bool { return len(all) == 1 && serves(all[0]) }
	for _, steps := range [][]string{
		{"state Created"},
		{"state Assigned"},
		{"put"},
		{"put", "state Assigned"},
		{"state Unassigned"},
		{"state Unassigned", "state Assigned"},
	} {
		write(t, old, a, steps...)
		w.marker(t, "both")
		w.assignments(t, "both", "one that can be attached", func(all []v1.AzureAssignedIdentity) bool {
			return len(all) == 1 && all[0].Status.Status != v1.AssignedIDUnassigned
		})
		w.attached(t, "both")
		w.assignments(t, "both", "one that serves", serving)
	}
	write(t, old, a, "delete")
	w.assignments(t, "both", "a new one", func(all []v1.AzureAssignedIdentity) bool {
		return len(all) == 1 && all[0].UID != first.UID && all[0].Status.Status == v1.AssignedIDCreated
	})
	w.kill(t, pod)
	w.assignments(t, "both", "none", count(0))
	if err := old.Delete(t.Context(), a); !legacy.Is(err, http.StatusNotFound) {
		t.Errorf("the old controller's delete of what is gone: %v", err)
	}
}

func serves(a v1.AzureAssignedIdentity) bool {
	return a.DeletionTimestamp == nil && (a.Status.Status == v1.AssignedIDAssigned || a.Status.Status == "")
}

// createdBehindItsBack: the old controller was faster, and our cache does not
// show it yet. Ours is no second one.
func createdBehindItsBack(t *testing.T, w *world, old *legacy.Client) {
	w.namespace(t, "behind", "demo")
	sent, _ := w.run(t, false)
	release := sent.hold(assignedKind)
	write(t, old, of("behind", "web"), "create", "state Assigned")
	w.pod(t, "behind", "web", "n0")
	sent.await(t, "the attempt", func() bool { return len(sent.writes) > 0 && sent.writes[0].status != 0 })
	release()
	w.assignments(t, "behind", "the adopted one", func(all []v1.AzureAssignedIdentity) bool {
		return len(all) == 1 && len(all[0].Finalizers) == 0 && all[0].Status.Status == v1.AssignedIDAssigned && all[0].Name == "web-behind-demo"
	})
}

// principalAdopted: a service principal's assignment needs nothing of Azure, and
// nothing of ours.
func principalAdopted(t *testing.T, w *world, old *legacy.Client) {
	w.namespace(t, "principal")
	_, _ = w.identity(t, "principal", "demo", "principal")
	edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "principal", Name: "demo"}}, func(o *v1.AzureIdentity) {
		o.Spec = v1.AzureIdentitySpec{Type: 1, ClientID: "abc", TenantID: "t", ADEndpoint: "https://login.microsoftonline.us/", ClientPassword: &v1.SecretReference{Name: "s", Namespace: "principal"}}
	})
	w.pod(t, "principal", "web", "n0")
	a := of("principal", "web")
	write(t, old, a, "create", "state Assigned")
	before := get(t, old, a)
	w.run(t, false)
	w.assignments(t, "principal", "the adopted one", func(all []v1.AzureAssignedIdentity) bool { return len(all) == 1 && len(all[0].Finalizers) == 0 })
	if diff := cmp.Diff(before["spec"], get(t, old, a)["spec"]); diff != "" {
		t.Errorf("the spec was rewritten (-before +after):\n%s", diff)
	}
	var object v1.AzureAssignedIdentity
	if err := w.kube.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: a.Name()}, &object); err != nil || object.Status.Status != v1.AssignedIDAssigned {
		t.Errorf("got %+v, %v", object.Status, err)
	}
}
