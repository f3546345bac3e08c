package mic_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
)

// rewriter is a transport that changes what Azure answered.
type rewriter struct {
	policy.Transporter
	rewrite func(r *http.Request, status int, body []byte) []byte
}

func (w *rewriter) Do(r *http.Request) (*http.Response, error) {
	response, err := w.Transporter.Do(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if err := response.Body.Close(); err != nil {
		return nil, err
	}
	body = w.rewrite(r, response.StatusCode, body)
	response.Body, response.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	response.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return response, nil
}

// TestOwnership plays who may remove what.
func TestOwnership(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	for _, test := range []struct {
		name string
		play func(*testing.T, *scene)
	}{
		{"adopted", adopted},
		{"not-adopted", notAdopted},
		{"adopted-once", adoptedOnce},
		{"drift", drift},
		{"recreated", recreated},
		{"recreated-foreign", recreatedForeign},
		{"mismatch", wrongClientID},
		{"deleting", deletingScaleSet},
		{"subscriptions", twoSubscriptions},
		{"emptied", nodeScaledIn},
	} {
		t.Run(test.name, func(t *testing.T) { test.play(t, w.scene(t, "own-"+test.name, scaleSets)) })
	}
}

// old makes an assignment as v1.8.17 leaves it.
func (s *scene) old(t *testing.T, object *v1.AzureIdentity, binding *v1.AzureIdentityBinding, pod, status string) *v1.AzureAssignedIdentity {
	t.Helper()
	node := s.ns + "-node-0"
	out := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: pod + "-" + s.ns + "-" + object.Name,
			Labels: map[string]string{v1.NodeNameLabel: node}, Finalizers: []string{v1.AssignedIdentityFinalizer},
		},
		Spec: v1.AzureAssignedIdentitySpec{
			AzureIdentityRef: object.DeepCopy(), AzureBindingRef: binding.DeepCopy(), Pod: pod, PodNamespace: s.ns, NodeName: node, Replicas: new(int32(1)),
		},
		Status: v1.AzureAssignedIdentityStatus{Status: status, AvailableReplicas: 1},
	}
	out.Spec.AzureIdentityRef.APIVersion, out.Spec.AzureIdentityRef.Kind = v1.GroupVersion.String(), "AzureIdentity"
	out.Spec.AzureBindingRef.APIVersion, out.Spec.AzureBindingRef.Kind = v1.GroupVersion.String(), "AzureIdentityBinding"
	s.create(t, out)
	return out
}

// upgraded is a cluster as the old controller leaves it: a pod with an identity,
// an identity whose pod went while nobody looked, one that was about to be
// attached, and one that an operator attached.
func upgraded(t *testing.T, s *scene) *corev1.Pod {
	t.Helper()
	objects := map[string]*v1.AzureIdentity{}
	bindings := map[string]*v1.AzureIdentityBinding{}
	for _, name := range []string{"used", "left", "begun"} {
		objects[name], bindings[name] = s.identity(t, name)
	}
	s.managed(t, "theirs")
	for _, name := range []string{"used", "left", "theirs"} {
		s.attach(t, name)
	}
	pod := s.pod(t, "web", "used")
	s.old(t, objects["used"], bindings["used"], "web", v1.AssignedIDAssigned)
	s.old(t, objects["left"], bindings["left"], "gone", v1.AssignedIDLegacy)
	s.old(t, objects["begun"], bindings["begun"], "gone", v1.AssignedIDCreated)
	return pod
}

func adopted(t *testing.T, s *scene) {
	pod := upgraded(t, s)
	defer run(t, s.options(t))()
	s.present(t, "used", "theirs") // what is left behind by the old one goes
	s.assigned(t, pod)
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t, "theirs")
}

func notAdopted(t *testing.T, s *scene) {
	pod := upgraded(t, s)
	defer run(t, s.options(t, "--adopt-assigned=false"))()
	s.assigned(t, pod)
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.marker(t)
	s.present(t, "used", "left", "theirs", "marker")
}

// adoptedOnce: what an operator attaches later is not taken for the old
// controller's, although an assignment of that time is still there.
func adoptedOnce(t *testing.T, s *scene) {
	object, binding := s.identity(t, "demo")
	pod := s.pod(t, "web", "demo")
	s.old(t, object, binding, "web", v1.AssignedIDCreated)
	s.attach(t, "demo")
	stop := run(t, s.options(t))
	s.assigned(t, pod)
	stop()
	stop = run(t, s.options(t))
	s.marker(t)
	s.kill(t, pod)
	s.unassigned(t, pod)
	s.present(t, "demo", "marker")
	stop()
}

// detach removes an identity from the scene's scale set as an operator would.
func (s *scene) detach(t *testing.T, name string) {
	t.Helper()
	id, err := armid.Parse(s.id(name))
	if err != nil {
		t.Fatal(err)
	}
	resource, err := armid.Parse(s.resource)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.sim.State.PatchIdentity(state.IdentityPatch{Principal: micObjectID, Resource: resource, Type: state.TypeUserAssigned, Remove: map[armid.ID]string{id: s.id(name)}}); err != nil {
		t.Fatal(err)
	}
}

func drift(t *testing.T, s *scene) {
	defer run(t, s.options(t, "--identity-assignment-reconcile-interval=1s"))()
	s.identity(t, "demo")
	s.identity(t, "other")
	s.assigned(t, s.pod(t, "web", "demo"))
	pod := s.pod(t, "api", "other")
	s.assigned(t, pod)
	before := len(s.requests(http.MethodPatch))
	s.detach(t, "demo")
	s.record(t, "with a new patch", func(a v1.AzureIdentityAttachment) bool {
		return len(s.requests(http.MethodPatch)) > before && synced(a)
	})
	s.present(t, "demo", "other")
}

// forger shows an identity without a principal until it is detached.
func (s *scene) forger(inner policy.Transporter, clientID string, shown *atomic.Pointer[string]) *rewriter {
	return &rewriter{Transporter: inner, rewrite: func(r *http.Request, status int, body []byte) []byte {
		value := shown.Load()
		if value == nil || !strings.EqualFold(r.URL.Path, s.resource) {
			return body
		}
		if r.Method == http.MethodPatch && status < 300 && !bytes.Contains(body, []byte(clientID)) {
			shown.Store(nil)
			return body
		}
		return bytes.ReplaceAll(body, []byte(strconv.Quote(clientID)), []byte(*value))
	}}
}

// recreated: the identity is deleted and made again under its name.
func recreated(t *testing.T, s *scene) {
	object, _ := s.identity(t, "demo")
	s.identity(t, "other")
	var shown atomic.Pointer[string]
	options := s.options(t, "--identity-assignment-reconcile-interval=1s")
	options.Transport = s.forger(options.Transport, object.Spec.ClientID, &shown)
	defer run(t, options)()
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	s.assigned(t, s.pod(t, "api", "other"))
	before := len(s.requests(http.MethodPatch))
	shown.Store(new("null"))
	s.record(t, "that mends", func(a v1.AzureIdentityAttachment) bool {
		return len(s.requests(http.MethodPatch)) >= before+2 && synced(a)
	})
	s.assigned(t, pod)
	s.present(t, "demo", "other")
	for i, patch := range s.requests(http.MethodPatch)[before:] {
		if i > 1 || len(patch.Removed) != 1-i || len(patch.Added) != i {
			t.Errorf("patch %d: added %v, removed %v; want one removed, then one added", i, patch.Added, patch.Removed)
		}
	}
}

// recreatedForeign: the same with one that an operator attached. It is said, and
// left alone.
func recreatedForeign(t *testing.T, s *scene) {
	object, _ := s.identity(t, "demo")
	s.attach(t, "demo")
	var shown atomic.Pointer[string]
	shown.Store(new("null"))
	options := s.options(t, "--identity-assignment-reconcile-interval=1s")
	options.Transport = s.forger(options.Transport, object.Spec.ClientID, &shown)
	defer run(t, options)()
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonIdentityRecreated)
	s.attachable(t, "demo", v1.ReasonIdentityRecreated, "detach it there by hand")
	if patches := s.requests(http.MethodPatch); len(patches) > 0 {
		t.Errorf("got patches %v", patches)
	}
	shown.Store(nil)
	s.assigned(t, pod)
	s.attachable(t, "demo", "", "")
}

// wrongClientID: the author of the AzureIdentity took another's client ID.
func wrongClientID(t *testing.T, s *scene) {
	clientID := s.managed(t, "demo")
	object := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "demo"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("demo"), ClientID: micClientID}}
	s.create(t, object)
	s.bind(t, "demo", "demo")
	defer run(t, s.options(t, "--identity-assignment-reconcile-interval=1s"))()
	pod := s.pod(t, "web", "demo")
	s.assigned(t, pod)
	s.attachable(t, "demo", v1.ReasonClientIDMismatch, clientID)
	s.marker(t)
	s.noneDetached(t)
	edit(t, s.world, object, func(i *v1.AzureIdentity) { i.Spec.ClientID = clientID })
	s.attachable(t, "demo", "", "")
	s.assigned(t, pod)
	s.noneDetached(t)
}

// deletingScaleSet: nothing is asked of it, and it is said once.
func deletingScaleSet(t *testing.T, s *scene) {
	_, binding := s.identity(t, "demo")
	options := s.options(t)
	options.Transport = &rewriter{Transporter: options.Transport, rewrite: func(r *http.Request, _ int, body []byte) []byte {
		if !strings.EqualFold(r.URL.Path, s.resource) {
			return body
		}
		return bytes.ReplaceAll(body, []byte(`"provisioningState":"Succeeded"`), []byte(`"provisioningState":"Deleting"`))
	}}
	defer run(t, options)()
	s.waiting(t, s.pod(t, "web", "demo"), v1.ReasonResourceDeleting)
	s.waiting(t, s.pod(t, "api", "demo"), v1.ReasonResourceDeleting)
	record := s.record(t, "that says so", func(a v1.AzureIdentityAttachment) bool {
		return reasonOf(a.Status.Conditions, v1.ConditionSynced) == v1.ReasonResourceDeleting
	})
	s.event(t, "AzureIdentityBinding", binding.Name, "binding apply error", "being deleted")
	s.event(t, "AzureIdentityAttachment", record.Name, string(v1.ReasonResourceDeleting), "being deleted")
	if patches := s.requests(http.MethodPatch); len(patches) > 0 {
		t.Errorf("got patches %v", patches)
	}
	var events corev1.EventList
	if err := s.kube.List(t.Context(), &events); err != nil {
		t.Fatal(err)
	}
	said := slices.DeleteFunc(events.Items, func(e corev1.Event) bool { return e.InvolvedObject.Name != record.Name })
	if len(said) != 1 || said[0].Count != 1 {
		t.Errorf("said %d times: %+v", len(said), said)
	}
}

// twoSubscriptions: a node in another subscription and group, in another case.
func twoSubscriptions(t *testing.T, s *scene) {
	const second = "/subscriptions/22222222-2222-3333-4444-555555555555"
	for _, role := range []string{"Virtual Machine Contributor", "Managed Identity Operator"} {
		if _, err := s.sim.State.Add(model.Document{RoleAssignments: []model.RoleAssignment{{Principal: micObjectID, Role: role, Scope: second}}}); err != nil {
			t.Fatal(err)
		}
	}
	s.identity(t, "demo")
	other := s.beside(t, s.ns+"-node-1", strings.Replace(s.resource, subscription, second, 1))
	s.node(t, s.ns+"-node-2", strings.ToUpper(other.resource)+"/virtualMachines/7")
	defer run(t, s.options(t))()
	s.assigned(t, s.podOn(t, s.ns, "web", "demo", s.ns+"-node-1"))
	s.assigned(t, s.podOn(t, s.ns, "api", "demo", s.ns+"-node-2"))
	other.present(t, "demo")
	if got := len(other.requests(http.MethodPatch)); got != 1 {
		t.Errorf("one scale set in two spellings took %d patches", got)
	}
	if got := len(s.requests(http.MethodPatch)); got != 0 {
		t.Errorf("its namesake took %d patches", got)
	}
}

// nodeScaledIn: node, pod and assignment go while the controller runs, in the
// order in which a node is scaled in.
func nodeScaledIn(t *testing.T, s *scene) {
	s.identity(t, "demo")
	defer run(t, s.options(t))()
	s.node(t, s.ns+"-node-1", s.resource+"/virtualMachines/1")
	var pods []*corev1.Pod
	for i := range 2 {
		pods = append(pods, s.podOn(t, s.ns, fmt.Sprintf("web-%d", i), "demo", fmt.Sprintf("%s-node-%d", s.ns, i)))
		s.assigned(t, pods[i])
	}
	s.delete(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-node-1"}})
	s.kill(t, pods[1])
	s.unassigned(t, pods[1])
	s.marker(t)
	s.present(t, "demo", "marker") // the other node's pod needs it
	s.kill(t, pods[0])
	s.present(t, "marker")
}
