package binding_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// random is a small cluster in which all names meet often.
func random(r *rand.Rand) (binding.Pod, world, binding.Policy) {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	w := world{identities: map[identity.Key]*v1.AzureIdentity{}}
	for range r.IntN(6) {
		id := managed(pick("a", "b", "c") + "/" + pick("i", "j"))
		switch r.IntN(5) {
		case 0:
			id.Spec.ResourceID = "invalid"
		case 1:
			namespaced(id)
		case 2:
			id.Spec.ClientID = ""
		}
		w.identities[identity.Key{Namespace: id.Namespace, Name: id.Name}] = id
	}
	for i := range r.IntN(8) {
		w.bindings = append(w.bindings, bind(fmt.Sprintf("%s/b%d", pick("a", "b", "c"), i), pick("i", "j", ""), pick("x", "y", "")))
	}
	return pod(pick("a", "b", "c")+"/p", pick("x", "y", "")), w, binding.Policy{Namespaced: r.IntN(3) == 0}
}

// check holds what must be true of every decision.
func check(t *testing.T, p binding.Pod, w world, policy binding.Policy, d binding.Decision) {
	t.Helper()
	names := map[string]bool{}
	for _, grant := range d.Grants {
		id := grant.Identity
		if names[id.Name] {
			t.Errorf("two grants of the name %s", id.Name)
		}
		names[id.Name] = true
		if (policy.Namespaced || id.Namespaced) && id.Namespace != p.Namespace {
			t.Errorf("%s was granted across namespaces", id.Key)
		}
		if grant.Binding.Namespace != id.Namespace || grant.Binding.Spec.Selector != p.Selector() || grant.Binding.Spec.AzureIdentity != id.Name {
			t.Errorf("%s was granted by a binding that does not give it", id.Key)
		}
		if id.ResourceID.IsZero() && (id.ClientID.String() == "" || id.Attached()) {
			t.Errorf("%s was granted without what it needs: it would be the node's default", id.Key)
		}
	}
	if p.Selector() == "" && len(d.Grants)+len(d.Refusals) > 0 {
		t.Error("a pod without the label was selected")
	}
	if n := len(d.Grants) + len(d.Refusals); n > len(w.bindings) {
		t.Errorf("%d outcomes of %d bindings", n, len(w.bindings))
	}
}

func TestDecideProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		p, w, policy := random(r)
		got := binding.Decide(p, w, policy)
		check(t, p, w, policy, got)

		r.Shuffle(len(w.bindings), func(i, j int) { w.bindings[i], w.bindings[j] = w.bindings[j], w.bindings[i] })
		if diff := cmp.Diff(tell(got), tell(binding.Decide(p, w, policy))); diff != "" {
			t.Fatalf("the order of bindings matters: %s", diff)
		}

		strict := binding.Decide(p, w, binding.Policy{Namespaced: true})
		for _, grant := range strict.Grants {
			if grant.Identity.Namespace != p.Namespace {
				t.Fatal("a namespaced install grants across namespaces")
			}
		}
		if t.Failed() {
			t.Fatalf("pod %+v, bindings %v", p, tell(got))
		}
	}
}

// FuzzDecide holds the properties for a binding and an identity of any spelling.
func FuzzDecide(f *testing.F) {
	f.Add("ns", "demo", "demo", "", "i", "", resource("i"), "client", "ns", false)
	f.Add("ns", "demo", "", "demo", "", "i", "", "client", "other", true)
	f.Fuzz(func(t *testing.T, podNS, label, selector, oldSelector, names, oldNames, resourceID, clientID, ns string, force bool) {
		b := bind(ns+"/b", names, selector)
		b.Namespace, b.Spec.LegacySelector, b.Spec.LegacyAzureIdentity = ns, oldSelector, oldNames
		name := names
		if name == "" {
			name = oldNames
		}
		id := managed("x/x")
		id.Namespace, id.Name, id.Spec.ResourceID, id.Spec.ClientID = ns, name, resourceID, clientID
		p := binding.Pod{Namespace: podNS, Name: "p", Labels: map[string]string{v1.PodLabel: label}}
		w := world{bindings: []*v1.AzureIdentityBinding{b}, identities: map[identity.Key]*v1.AzureIdentity{{Namespace: ns, Name: name}: id}}

		before := b.DeepCopy()
		d := binding.Decide(p, w, binding.Policy{Namespaced: force})
		if !cmp.Equal(before, b, cmpopts.EquateEmpty()) {
			t.Fatal("the binding was changed")
		}
		for _, grant := range d.Grants {
			if label == "" || (selector != label && oldSelector != label) {
				t.Fatal("granted to a pod that nothing selects")
			}
			if force && ns != podNS {
				t.Fatal("granted across namespaces")
			}
			if grant.Identity.ClientID.String() == "" && grant.Identity.ResourceID.IsZero() {
				t.Fatal("granted without an ID")
			}
		}
	})
}
