package mic_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// TestScenarios plays scenes in one world with one controller, at the same time,
// as a cluster does.
func TestScenarios(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	run(t, w.options(t, "--immutable-user-msis", " "+strings.ToUpper((&scene{ns: "scene-immutable"}).id("kept"))+", 5A5A5A5A-0000-4000-8000-00000000000A"))
	for _, test := range []struct {
		name string
		play func(*testing.T, *scene)
	}{
		{"one-patch", onePatch},
		{"burst", burst},
		{"foreign", foreign},
		{"already-there", alreadyThere},
		{"same-pod-name", samePodName},
		{"metadata", metadataEdit},
		{"repointed", repointed},
		{"legacy", legacy},
		{"one-name", twoResourcesOfOneName},
		{"missing", missingIdentity},
		{"terminating", terminating},
		{"succeeded", succeeded},
		{"relabelled", relabelled},
		{"moved", moved},
		{"principal", servicePrincipal},
		{"namespaced", namespaced},
		{"ambiguous", ambiguous},
		{"immutable", immutable},
		{"mixed", mixed},
		{"not-azure", notAzure},
		{"unscheduled", unscheduled},
		{"repaired", repaired},
		{"node-gone", nodeGone},
		{"finalizer", oldFinalizer},
		{"deleted", deleted},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.play(t, w.scene(t, "scene-"+test.name, scaleSets))
		})
	}
	for name, play := range onVirtualMachines() {
		t.Run("vm-"+name, func(t *testing.T) {
			t.Parallel()
			play(t, w.scene(t, "vm-"+name, virtualMachines))
		})
	}
}

func onePatch(t *testing.T, s *scene) {
	_, binding := s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	a := s.assigned(t, pod)
	if want := fmt.Sprintf("web-%s-demo", s.ns); a.Name != want || a.Namespace != "default" || a.Labels["nodename"] != s.ns+"-node-0" || len(a.Finalizers) != 0 {
		t.Errorf("got %s/%s with labels %v and finalizers %v, want default/%s", a.Namespace, a.Name, a.Labels, a.Finalizers, want)
	}
	if ref := a.Spec.AzureIdentityRef; ref.Kind != "AzureIdentity" || ref.APIVersion != "aadpodidentity.k8s.io/v1" || len(ref.ManagedFields) != 0 {
		t.Errorf("an old agent cannot read the copy %+v", ref)
	}
	s.present(t, "demo")
	patches := s.requests(http.MethodPatch)
	if len(patches) != 1 || patches[0].IfMatch == "" {
		t.Errorf("got patches %v, want one with If-Match", patches)
	}
	s.event(t, "AzureIdentityBinding", binding.Name, "binding applied", "web")
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t)
	s.event(t, "AzureIdentityBinding", binding.Name, "binding removed", "web")
}

func burst(t *testing.T, s *scene) {
	names := []string{"a", "b", "c"}
	for _, name := range names {
		s.identity(t, name)
	}
	var pods []*corev1.Pod
	for i := range 20 {
		pods = append(pods, s.pod(t, fmt.Sprintf("web-%d", i), names[i%3]))
	}
	for _, pod := range pods {
		s.assigned(t, pod)
	}
	s.present(t, names...)
	if patches := s.requests(http.MethodPatch); len(patches) > 2 {
		t.Errorf("20 pods took %d patches: %v", len(patches), patches)
	}
}

func foreign(t *testing.T, s *scene) {
	s.identity(t, "ours")
	s.managed(t, "theirs")
	s.attach(t, "theirs")
	pod := s.pod(t, "web", "ours")
	s.assigned(t, pod)
	s.present(t, "ours", "theirs")
	s.kill(t, pod)
	s.present(t, "theirs")
}

func alreadyThere(t *testing.T, s *scene) {
	s.identity(t, "demo")
	s.attach(t, "demo")
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	s.present(t, "demo")
	s.kill(t, pod)
	s.unassigned(t, pod)
	// The next pod's patch shows that the controller has been here since.
	s.identity(t, "other")
	s.assigned(t, s.pod(t, "next", "other"))
	s.present(t, "demo", "other")
	if patches := s.requests(http.MethodPatch); len(patches) != 1 {
		t.Errorf("got patches %v, want one, for the other identity", patches)
	}
}

func samePodName(t *testing.T, s *scene) {
	s.identity(t, "demo")
	s.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-b"}})
	first := s.pod(t, "web-0", "demo")
	second := s.podOn(t, s.ns+"-b", "web-0", "demo", s.ns+"-node-0")
	s.assigned(t, first)
	s.assigned(t, second)
	s.kill(t, first)
	s.unassigned(t, first)
	s.marker(t)
	s.assigned(t, second)
	s.present(t, "demo", "marker")
}

// marker makes the controller attach one more identity, so that whatever it had
// to do for the scene before is done.
func (s *scene) marker(t *testing.T) {
	t.Helper()
	s.identity(t, "marker")
	s.assigned(t, s.pod(t, "marker", "marker"))
}

func metadataEdit(t *testing.T, s *scene) {
	object, binding := s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	before := s.assigned(t, pod)
	edit(t, s.world, object, func(i *v1.AzureIdentity) { i.Labels = map[string]string{"team": "blue"} })
	edit(t, s.world, binding, func(b *v1.AzureIdentityBinding) { b.Annotations = map[string]string{"note": "x"} })
	s.marker(t)
	if after := s.assigned(t, pod); after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the assignment was written: %+v", after)
	}
}

func repointed(t *testing.T, s *scene) {
	object, _ := s.identity(t, "old")
	pod := s.pod(t, "web", "old")
	s.assigned(t, pod)
	clientID := s.managed(t, "new")
	edit(t, s.world, object, func(i *v1.AzureIdentity) { i.Spec.ResourceID, i.Spec.ClientID = s.id("new"), clientID })
	s.assignment(t, pod, "that is Assigned to the new one", func(a v1.AzureAssignedIdentity) bool {
		return isAssigned(a) && a.Spec.AzureIdentityRef.Spec.ClientID == clientID
	})
	s.present(t, "new")
	patches := s.requests(http.MethodPatch)
	if last := patches[len(patches)-1]; len(patches) != 2 || len(last.Added) != 1 || len(last.Removed) != 1 {
		t.Errorf("got patches %+v, want the second to swap", patches)
	}
	// The same in another case is the same.
	before := s.assigned(t, pod)
	edit(t, s.world, object, func(i *v1.AzureIdentity) { i.Spec.ResourceID = strings.ToUpper(s.id("new")) })
	s.marker(t)
	if after := s.assigned(t, pod); after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the assignment was written for a change of case: %+v", after.Spec.AzureIdentityRef.Spec)
	}
}

func legacy(t *testing.T, s *scene) {
	clientID := s.managed(t, "demo")
	s.create(t,
		&v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "demo"}, Spec: v1.AzureIdentitySpec{LegacyResourceID: s.id("demo"), LegacyClientID: clientID}},
		&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "demo"}, Spec: v1.AzureIdentityBindingSpec{LegacyAzureIdentity: "demo", LegacySelector: s.label("chosen")}})
	a := s.assigned(t, s.pod(t, "web", "chosen"))
	if spec := a.Spec.AzureIdentityRef.Spec; spec.ResourceID != s.id("demo") || spec.ClientID != clientID || spec.LegacyResourceID != "" {
		t.Errorf("the copy is not in today's spelling: %+v", spec)
	}
	s.present(t, "demo")
}

func twoResourcesOfOneName(t *testing.T, s *scene) {
	s.identity(t, "demo")
	twin := s.beside(t, s.ns+"-node-1", strings.ToUpper(strings.Replace(s.resource, "MC_", "mc-other_", 1)))
	first, second := s.pod(t, "first", "demo"), s.podOn(t, s.ns, "second", "demo", s.ns+"-node-1")
	s.assigned(t, first)
	s.assigned(t, second)
	s.present(t, "demo")
	twin.present(t, "demo")
	s.kill(t, second)
	twin.present(t)
	s.assigned(t, first)
	s.present(t, "demo")
}

func missingIdentity(t *testing.T, s *scene) {
	binding := s.bind(t, "missing", "demo")
	pod := s.pod(t, "web", "demo")
	s.verdict(t, binding.Name, v1.ReasonIdentityNotFound)
	s.event(t, "AzureIdentityBinding", binding.Name, string(v1.ReasonIdentityNotFound), "create it beside the binding")
	s.marker(t)
	clientID := s.managed(t, "missing")
	s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "missing"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("missing"), ClientID: clientID}})
	s.assigned(t, pod)
	s.verdict(t, binding.Name, v1.ReasonValid)
}

func (s *scene) verdict(t *testing.T, binding string, reason v1.Reason) {
	t.Helper()
	await(t, s.world, &v1.AzureIdentityBindingList{}, fmt.Sprintf("binding %s to say %s", binding, reason), func(l *v1.AzureIdentityBindingList) bool {
		return slices.ContainsFunc(l.Items, func(b v1.AzureIdentityBinding) bool {
			return b.Namespace == s.ns && b.Name == binding && reasonOf(b.Status.Conditions, v1.ConditionReady) == reason
		})
	})
}

func terminating(t *testing.T, s *scene) {
	s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	before := s.assigned(t, pod)
	s.delete(t, pod, client.GracePeriodSeconds(300))
	s.marker(t)
	if after := s.assigned(t, pod); after.UID != before.UID {
		t.Error("the assignment was made anew")
	}
	s.present(t, "demo", "marker")
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t, "marker")
}

func succeeded(t *testing.T, s *scene) {
	s.identity(t, "demo")
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		pod := s.pod(t, "job-"+strings.ToLower(string(phase)), "demo")
		s.assigned(t, pod)
		before := pod.DeepCopy()
		pod.Status.Phase = phase
		if err := s.kube.Status().Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		s.unassigned(t, pod)
		s.present(t)
	}
}

func relabelled(t *testing.T, s *scene) {
	s.identity(t, "old")
	s.identity(t, "new")
	pod := s.pod(t, "web", "old")
	s.assigned(t, pod)
	edit(t, s.world, pod, func(p *corev1.Pod) { p.Labels[v1.PodLabel] = s.label("new") })
	s.assignment(t, pod, "to the new one", func(a v1.AzureAssignedIdentity) bool {
		return isAssigned(a) && a.Spec.AzureIdentityRef.Name == "new"
	})
	s.present(t, "new")
	edit(t, s.world, pod, func(p *corev1.Pod) { delete(p.Labels, v1.PodLabel) })
	s.unassigned(t, pod)
	s.present(t)
}

func moved(t *testing.T, s *scene) {
	s.identity(t, "demo")
	other := s.beside(t, s.ns+"-node-1", s.resource+"-2")
	pod := s.pod(t, "db-0", "demo")
	before := s.assigned(t, pod)
	s.kill(t, pod)
	pod = s.podOn(t, s.ns, "db-0", "demo", s.ns+"-node-1")
	after := s.assignment(t, pod, "on the new node", func(a v1.AzureAssignedIdentity) bool {
		return isAssigned(a) && a.Spec.NodeName == s.ns+"-node-1"
	})
	if after.Name != before.Name || after.Labels["nodename"] != s.ns+"-node-1" {
		t.Errorf("got %s with labels %v", after.Name, after.Labels)
	}
	other.present(t, "demo")
	s.present(t)
}

func servicePrincipal(t *testing.T, s *scene) {
	s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "sp"}, Spec: v1.AzureIdentitySpec{
		Type: v1.ServicePrincipal, ClientID: micClientID, TenantID: tenant, ClientPassword: &v1.SecretReference{Name: "s", Namespace: s.ns},
	}})
	binding := s.bind(t, "sp", "sp")
	s.assigned(t, s.pod(t, "web", "sp"))
	s.event(t, "AzureIdentityBinding", binding.Name, "binding applied", "web")
	s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "fed"}, Spec: v1.AzureIdentitySpec{
		ClientID: micClientID, Federation: &v1.Federation{},
	}})
	s.bind(t, "fed", "fed")
	if a := s.assigned(t, s.pod(t, "api", "fed")); a.Namespace != s.ns {
		t.Errorf("a federated identity's assignment is in %s", a.Namespace)
	}
	s.marker(t)
	s.present(t, "marker")
}

func namespaced(t *testing.T, s *scene) {
	object, binding := s.identity(t, "demo")
	s.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-b"}})
	own, other := s.pod(t, "own", "demo"), s.podOn(t, s.ns+"-b", "other", "demo", s.ns+"-node-0")
	s.assigned(t, own)
	s.assigned(t, other)
	edit(t, s.world, object, func(i *v1.AzureIdentity) {
		i.Annotations = map[string]string{v1.BehaviorAnnotation: v1.BehaviorNamespaced}
	})
	s.unassigned(t, other)
	s.assignment(t, own, "beside its identity", func(a v1.AzureAssignedIdentity) bool { return isAssigned(a) && a.Namespace == s.ns })
	s.event(t, "Pod", "other", string(v1.ReasonNamespaceMismatch), "only")
	_ = binding
}

// ambiguous: pod a-b of namespace c and pod a of namespace b-c join to one name.
func ambiguous(t *testing.T, s *scene) {
	s.identity(t, "demo")
	s.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x-" + s.ns}})
	first := s.pod(t, "web-x", "demo")
	plain := s.assigned(t, first)
	second := s.podOn(t, "x-"+s.ns, "web", "demo", s.ns+"-node-0")
	hashed := s.assigned(t, second)
	if want := "web-x-" + s.ns + "-demo"; plain.Name != want || hashed.Name == want || !strings.HasPrefix(hashed.Name, want+"-") {
		t.Errorf("got %s and %s", plain.Name, hashed.Name)
	}
	s.kill(t, first)
	s.unassigned(t, first)
	s.marker(t)
	if again := s.assigned(t, second); again.Name != hashed.Name {
		t.Errorf("the second pod's assignment is called %s now", again.Name)
	}
	s.present(t, "demo", "marker")
}

func immutable(t *testing.T, s *scene) {
	s.identity(t, "kept")
	if _, err := s.sim.State.Add(model.Document{Identities: []model.Identity{{ID: s.id("kept-too"), ClientID: "5a5a5a5a-0000-4000-8000-00000000000a"}}}); err != nil {
		t.Fatal(err)
	}
	s.create(t, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "kept-too"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("kept-too"), ClientID: "5a5a5a5a-0000-4000-8000-00000000000a"}})
	s.bind(t, "kept-too", "kept")
	pod := s.pod(t, "web", "kept")
	s.assigned(t, pod)
	s.present(t, "kept", "kept-too")
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.marker(t)
	s.present(t, "kept", "kept-too", "marker")
}

func unscheduled(t *testing.T, s *scene) {
	s.identity(t, "demo")
	pod := s.podOn(t, s.ns, "web", "demo", "")
	s.marker(t)
	s.unassigned(t, pod)
	if err := s.kube.SubResource("binding").Create(t.Context(), pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: s.ns + "-node-0"}}); err != nil {
		t.Fatal(err)
	}
	s.assigned(t, pod)
}

// repaired: somebody deletes an assignment, then edits it, then takes its state
// back.
func repaired(t *testing.T, s *scene) {
	s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	first := s.assigned(t, pod)
	s.delete(t, &first)
	second := s.assignment(t, pod, "made anew", func(a v1.AzureAssignedIdentity) bool { return isAssigned(a) && a.UID != first.UID })
	edit(t, s.world, &second, func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.ClientID = "wrong" })
	s.assignment(t, pod, "mended", func(a v1.AzureAssignedIdentity) bool {
		return isAssigned(a) && a.Spec.AzureIdentityRef.Spec.ClientID == first.Spec.AzureIdentityRef.Spec.ClientID
	})
	edit(t, s.world, &second, func(a *v1.AzureAssignedIdentity) { a.Status.Status = v1.AssignedIDCreated })
	s.assigned(t, pod)
	edit(t, s.world, &second, func(a *v1.AzureAssignedIdentity) { a.Status.Status = v1.AssignedIDUnassigned })
	s.assigned(t, pod)
	s.present(t, "demo")
}

// nodeGone: the node's object goes before its pod's, as when a node is scaled in.
func nodeGone(t *testing.T, s *scene) {
	s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	s.delete(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-node-0"}})
	s.present(t)
	s.waiting(t, pod, v1.ReasonNodeNotFound)
	s.kill(t, pod)
	s.unassigned(t, pod)
}

func oldFinalizer(t *testing.T, s *scene) {
	s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	a := s.assigned(t, pod)
	edit(t, s.world, &a, func(a *v1.AzureAssignedIdentity) { a.Finalizers = []string{v1.AssignedIdentityFinalizer} })
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t)
}

// deleted: the identity's object goes, then, after it is back, the binding.
func deleted(t *testing.T, s *scene) {
	object, binding := s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	again := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "demo"}, Spec: object.Spec}
	s.delete(t, object)
	s.unassigned(t, pod)
	s.verdict(t, binding.Name, v1.ReasonIdentityNotFound)
	s.present(t)
	s.create(t, again)
	s.assigned(t, pod)
	s.delete(t, binding)
	s.unassigned(t, pod)
	s.present(t)
}
