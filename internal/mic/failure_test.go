package mic_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// TestFailures plays what can go wrong with one thing, and that the rest goes on.
func TestFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	run(t, w.options(t))
	for _, test := range []struct {
		name string
		play func(*testing.T, *scene)
	}{
		{"invalid", invalidIdentity},
		{"refused", refusedIdentity},
		{"not-assignable", notAssignable},
		{"denied", denied},
		{"not-found", notFound},
		{"changed", changed},
		{"busy", busy},
		{"throttled", throttled},
		{"dropped", dropped},
		{"failed-operation", failedOperation},
		{"read-fails", readFails},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.play(t, w.scene(t, "scene-"+test.name, scaleSets))
		})
	}
}

// invalidIdentity is one that the API server lets in and nobody can use.
func invalidIdentity(t *testing.T, s *scene) {
	object := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "odd"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("odd"), ClientID: "not a GUID"}}
	s.create(t, object)
	binding := s.bind(t, "odd", "both")
	s.identity(t, "good")
	s.bind(t, "good", "both")
	pod := s.pod(t, "web", "both")
	if a := s.assigned(t, pod); a.Spec.AzureIdentityRef.Name != "good" {
		t.Errorf("got %s", a.Spec.AzureIdentityRef.Name)
	}
	await(t, s.world, &v1.AzureIdentityList{}, "a condition on the identity", func(l *v1.AzureIdentityList) bool {
		return slices.ContainsFunc(l.Items, func(i v1.AzureIdentity) bool {
			return i.Namespace == s.ns && i.Name == "odd" && reasonOf(i.Status.Conditions, v1.ConditionReady) == v1.ReasonInvalidIdentity
		})
	})
	s.event(t, "AzureIdentity", "odd", string(v1.ReasonInvalidIdentity), "GUID alone")
	s.verdict(t, binding.Name, v1.ReasonInvalidIdentity)
	clientID := s.managed(t, "odd")
	edit(t, s.world, object, func(i *v1.AzureIdentity) { i.Spec.ClientID = clientID })
	s.assignment(t, pod, "to the mended one", func(a v1.AzureAssignedIdentity) bool {
		return isAssigned(a) && a.Spec.AzureIdentityRef.Name == "odd"
	})
}

// refusedIdentity does not exist in Azure, and fails the whole request.
func refusedIdentity(t *testing.T, s *scene) {
	s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "gone"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("gone"), ClientID: micClientID}})
	binding := s.bind(t, "gone", "both")
	s.identity(t, "good")
	s.bind(t, "good", "both")
	pod := s.pod(t, "web", "both")
	if a := s.assigned(t, pod); a.Spec.AzureIdentityRef.Name != "good" {
		t.Errorf("got %s", a.Spec.AzureIdentityRef.Name)
	}
	s.waiting(t, pod, v1.ReasonIdentityRefused)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding apply error", "check with az identity show")
	record := s.record(t, "that names the refused one", func(a v1.AzureIdentityAttachment) bool { return len(a.Status.Refused) == 1 })
	if got := record.Status.Refused[0]; got.ResourceID != strings.ToLower(s.id("gone")) || got.Reason != v1.ReasonIdentityRefused {
		t.Errorf("got %+v", got)
	}
	// It is tried again, and works once it exists.
	s.managed(t, "gone")
	s.assignment(t, pod, "to the one that exists now", func(a v1.AzureAssignedIdentity) bool {
		return isAssigned(a) && a.Spec.AzureIdentityRef.Name == "gone"
	})
	s.present(t, "gone", "good")
}

func notAssignable(t *testing.T, s *scene) {
	far := strings.Replace(s.id("far"), "11111111", "99999999", 1)
	added, err := s.sim.State.Add(model.Document{Identities: []model.Identity{{ID: far}}})
	if err != nil {
		t.Fatal(err)
	}
	s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "far"}, Spec: v1.AzureIdentitySpec{ResourceID: far, ClientID: added.Identities[0].ClientID}})
	binding := s.bind(t, "far", "demo")
	s.waiting(t, s.pod(t, "web", "demo"), v1.ReasonIdentityRefused)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding apply error", "Managed Identity Operator")
}

func denied(t *testing.T, s *scene) {
	_, binding := s.identity(t, "demo")
	played := s.fail(t, http.MethodPatch, 0, fault.Response{Status: http.StatusForbidden, Code: "AuthorizationFailed", Message: "no"})
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonPermissionDenied)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding apply error", "Virtual Machine Contributor")
	// Between two attempts, or the next one would be recorded already.
	record := s.record(t, "that says so", func(a v1.AzureIdentityAttachment) bool {
		return reasonOf(a.Status.Conditions, v1.ConditionSynced) == v1.ReasonPermissionDenied && len(a.Spec.Owned) == 0
	})
	s.event(t, "AzureIdentityAttachment", record.Name, string(v1.ReasonPermissionDenied), "Microsoft.Compute/virtualMachineScaleSets/write")
	if len(record.Spec.Owned) != 0 || record.Status.LastOperation.Result != "Failed" || len(record.Status.Pending) != 1 {
		t.Errorf("the record says %+v, %+v", record.Spec, record.Status)
	}
	s.sim.Faults.Remove(played.ID)
	s.assigned(t, pod)
	s.present(t, "demo")
}

func notFound(t *testing.T, s *scene) {
	s.identity(t, "demo")
	gone := &scene{world: s.world, ns: s.ns, resource: s.resource + "-gone"}
	node := s.node(t, s.ns+"-node-1", gone.resource+"/virtualMachines/0")
	pod := s.podOn(t, s.ns, "web", "demo", node.Name)
	s.waiting(t, pod, v1.ReasonResourceNotFound)
	gone.record(t, "that says so", func(a v1.AzureIdentityAttachment) bool {
		return reasonOf(a.Status.Conditions, v1.ConditionSynced) == v1.ReasonResourceNotFound
	})
	s.assigned(t, s.pod(t, "other", "demo"))
	// A record of what is no more goes with its last pod, or it would be asked for
	// ever.
	played := s.fail(t, http.MethodGet, 0, fault.Response{Status: http.StatusNotFound, Code: "ResourceNotFound", Message: "gone"})
	s.kill(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "other"}})
	await(t, s.world, &v1.AzureIdentityAttachmentList{}, "the record to go", func(l *v1.AzureIdentityAttachmentList) bool {
		return !slices.ContainsFunc(l.Items, func(a v1.AzureIdentityAttachment) bool { return strings.EqualFold(a.Spec.ResourceID, s.resource) })
	})
	s.sim.Faults.Remove(played.ID)
}

// changed: somebody else was faster, once.
func changed(t *testing.T, s *scene) {
	s.identity(t, "demo")
	s.fail(t, http.MethodPatch, 1, fault.Response{Status: http.StatusPreconditionFailed, Code: "PreconditionFailed", Message: "etag"})
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	if got := len(s.requests(http.MethodPatch)); got != 2 {
		t.Errorf("got %d patches, want 2", got)
	}
	s.kill(t, pod)
	s.present(t)
}

func busy(t *testing.T, s *scene) {
	s.identity(t, "demo")
	played := s.fail(t, http.MethodPatch, 0, fault.Response{Status: http.StatusConflict, Code: "OperationNotAllowed", Message: "another operation"})
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonConflict)
	s.sim.Faults.Remove(played.ID)
	s.assigned(t, pod)
}

func throttled(t *testing.T, s *scene) {
	s.identity(t, "demo")
	s.identity(t, "other")
	const wait = 3 * time.Second
	s.fail(t, http.MethodPatch, 1, fault.Response{Status: http.StatusTooManyRequests, Code: "OperationNotAllowed", Message: "slow down", Headers: map[string]string{"Retry-After": "3"}})
	first := s.pod(t, "first", "demo")
	s.waiting(t, first, v1.ReasonThrottled)
	// A pod that comes now is told, and does not make the controller ask early.
	second := s.pod(t, "second", "other")
	s.waiting(t, second, v1.ReasonThrottled)
	s.assigned(t, first)
	s.assigned(t, second)
	patches := s.requests(http.MethodPatch)
	if len(patches) != 2 || patches[1].Time.Sub(patches[0].Time) < wait-50*time.Millisecond {
		t.Errorf("got patches %v, want the second %s after the first", patches, wait)
	}
}

// dropped: the connection breaks and nobody knows what ARM did.
func dropped(t *testing.T, s *scene) {
	s.identity(t, "demo")
	played := s.fail(t, http.MethodPatch, 0, fault.Response{Drop: true})
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonARMUnavailable)
	s.sim.Faults.Remove(played.ID)
	s.assigned(t, pod)
	s.kill(t, pod)
	s.present(t)
}

func failedOperation(t *testing.T, s *scene) {
	s.identity(t, "demo")
	played := s.fail(t, http.MethodPatch, 0, fault.Response{FailOperation: true, Code: "InternalOperationError", Message: "An internal error occurred."})
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonARMUnavailable)
	s.sim.Faults.Remove(played.ID)
	s.assigned(t, pod)
	s.kill(t, pod)
	s.present(t)
}

func readFails(t *testing.T, s *scene) {
	s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	s.identity(t, "late")
	played := s.fail(t, http.MethodGet, 0, fault.Response{Status: http.StatusForbidden, Code: "AuthorizationFailed", Message: "no"})
	late := s.pod(t, "late", "late")
	s.waiting(t, late, v1.ReasonPermissionDenied)
	// What was there is not taken back because nobody can look.
	s.assigned(t, pod)
	s.sim.Faults.Remove(played.ID)
	s.assigned(t, late)
}
