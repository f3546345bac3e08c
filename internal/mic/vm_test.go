package mic_test

import (
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

// onVirtualMachines are the scenes that are also played on a node that is a
// virtual machine of its own, as each node of a Flexible scale set is.
func onVirtualMachines() map[string]func(*testing.T, *scene) {
	return map[string]func(*testing.T, *scene){
		"one-patch":     onePatch,
		"burst":         burst,
		"foreign":       foreign,
		"already-there": alreadyThere,
		"repointed":     repointed,
		"one-name":      twoResourcesOfOneName,
		"moved":         moved,
		"apart":         nothingIsShared,
		"node-gone":     nodeGone,
	}
}

// mixed: one identity is used on an instance of a scale set and on a virtual
// machine of the same name.
func mixed(t *testing.T, s *scene) {
	_, binding := s.identity(t, "demo")
	vm := s.beside(t, s.ns+"-vm", strings.Replace(s.resource, scaleSets, virtualMachines, 1))
	onSet, onVM := s.pod(t, "on-set", "demo"), s.podOn(t, s.ns, "on-vm", "demo", s.ns+"-vm")
	s.assigned(t, onSet)
	s.assigned(t, onVM)
	s.present(t, "demo")
	vm.present(t, "demo")
	for _, place := range []*scene{s, vm} {
		if patches := place.requests(http.MethodPatch); len(patches) != 1 || patches[0].IfMatch == "" {
			t.Errorf("%s: got patches %v, want one with If-Match", place.resource, patches)
		}
	}
	s.kill(t, onVM)
	vm.present(t)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding removed", "on-vm")
	s.assigned(t, onSet)
	s.present(t, "demo")
}

// nothingIsShared: each virtual machine carries what its own pods need, where the
// instances of a scale set carry what any of them needs.
func nothingIsShared(t *testing.T, s *scene) {
	s.identity(t, "a")
	s.identity(t, "b")
	other := s.beside(t, s.ns+"-node-1", s.resource+"-1")
	s.assigned(t, s.pod(t, "web-a", "a"))
	s.assigned(t, s.podOn(t, s.ns, "web-b", "b", s.ns+"-node-1"))
	s.present(t, "a")
	other.present(t, "b")
}

// notAzure: nodes that no machine of Azure's is behind, and one that is not
// there.
func notAzure(t *testing.T, s *scene) {
	_, binding := s.identity(t, "demo")
	s.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-kind"}, Spec: corev1.NodeSpec{ProviderID: "kind://docker/kind/worker"}})
	s.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-new"}})
	s.waiting(t, s.podOn(t, s.ns, "on-kind", "demo", s.ns+"-kind"), v1.ReasonUnsupportedNode)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding apply error", "is not of Azure")
	s.waiting(t, s.podOn(t, s.ns, "on-new", "demo", s.ns+"-new"), v1.ReasonUnsupportedNode)
	s.waiting(t, s.podOn(t, s.ns, "nowhere", "demo", s.ns+"-none"), v1.ReasonNodeNotFound)
	s.assigned(t, s.pod(t, "on-set", "demo"))
}

// A controller without a right on the machine says which right it lacks: the
// machine's kind is in the action's name.
func TestMissingRightOnAVirtualMachineIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	azure := w.sim.State.Snapshot()
	azure.RoleAssignments = azure.RoleAssignments[1:] // without Virtual Machine Contributor
	if azure.RoleAssignments[0].Role != "Managed Identity Operator" {
		t.Fatalf("the roles are %v", azure.RoleAssignments)
	}
	azure.Applications[0].Secrets[0] = micSecret
	if err := w.sim.State.Replace(azure); err != nil {
		t.Fatal(err)
	}
	run(t, w.options(t))
	s := w.scene(t, "denied", virtualMachines)
	s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	a := s.waiting(t, pod, v1.ReasonPermissionDenied)
	for _, c := range a.Status.Conditions {
		if !strings.Contains(c.Message, "may not Microsoft.Compute/virtualMachines/read on "+strings.ToLower(s.resource)) {
			t.Errorf("it says %q", c.Message)
		}
	}
}
