package binding_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// world is a Catalog of plain lists.
type world struct {
	bindings   []*v1.AzureIdentityBinding
	identities map[identity.Key]*v1.AzureIdentity
}

func (w world) Bindings(string) []*v1.AzureIdentityBinding  { return w.bindings }
func (w world) Identity(key identity.Key) *v1.AzureIdentity { return w.identities[key] }
func key(s string) (k identity.Key)                         { k.Namespace, k.Name, _ = strings.Cut(s, "/"); return k }
func meta(s string) metav1.ObjectMeta {
	k := key(s)
	return metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}
}
func pod(name, selector string) binding.Pod {
	return binding.Pod{Namespace: key(name).Namespace, Name: key(name).Name, Labels: map[string]string{v1.PodLabel: selector}}
}
func resource(name string) string {
	return "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
}
func bind(name, id, selector string) *v1.AzureIdentityBinding {
	return &v1.AzureIdentityBinding{ObjectMeta: meta(name), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: id, Selector: selector}}
}

func managed(name string, edits ...func(*v1.AzureIdentity)) *v1.AzureIdentity {
	out := &v1.AzureIdentity{ObjectMeta: meta(name), Spec: v1.AzureIdentitySpec{ResourceID: resource(key(name).Name), ClientID: "c-" + key(name).Name}}
	for _, edit := range edits {
		edit(out)
	}
	return out
}

func namespaced(id *v1.AzureIdentity) {
	id.Annotations = map[string]string{v1.BehaviorAnnotation: v1.BehaviorNamespaced}
}

func of(objects ...any) world {
	w := world{identities: map[identity.Key]*v1.AzureIdentity{}}
	for _, object := range objects {
		switch o := object.(type) {
		case *v1.AzureIdentityBinding:
			w.bindings = append(w.bindings, o)
		case *v1.AzureIdentity:
			w.identities[identity.Key{Namespace: o.Namespace, Name: o.Name}] = o
		}
	}
	return w
}

// told is a Decision in short: identities granted, and "reason binding" refused.
type told struct{ Granted, Refused []string }

func tell(d binding.Decision) told {
	var out told
	for _, grant := range d.Grants {
		out.Granted = append(out.Granted, grant.Identity.String())
	}
	for _, refusal := range d.Refusals {
		out.Refused = append(out.Refused, string(refusal.Reason)+" "+refusal.Binding.String())
	}
	return out
}

func TestDecide(t *testing.T) {
	legacyBinding := &v1.AzureIdentityBinding{ObjectMeta: meta("ns/b"), Spec: v1.AzureIdentityBindingSpec{LegacyAzureIdentity: "i", LegacySelector: "demo"}}
	clash := &v1.AzureIdentityBinding{ObjectMeta: meta("ns/b"), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: "other", LegacySelector: "demo"}}
	broken := func(id *v1.AzureIdentity) { id.Spec.ResourceID = "invalidresid" }
	federated := func(id *v1.AzureIdentity) { id.Spec.Federation = &v1.Federation{} }

	for name, test := range map[string]struct {
		pod    binding.Pod
		world  world
		policy binding.Policy
		want   told
	}{
		"the tutorial's case":                         {pod("ns/p", "demo"), of(managed("ns/i"), bind("ns/b", "i", "demo")), binding.Policy{}, told{Granted: []string{"ns/i"}}},
		"no label":                                    {binding.Pod{Namespace: "ns", Name: "p"}, of(managed("ns/i"), bind("ns/b", "i", "demo")), binding.Policy{}, told{}},
		"an empty label never matches":                {pod("ns/p", ""), of(managed("ns/i"), bind("ns/b", "i", "")), binding.Policy{}, told{}},
		"no label, binding without a selector":        {binding.Pod{Namespace: "ns", Name: "p"}, of(managed("ns/i"), bind("ns/b", "i", "")), binding.Policy{Namespaced: true}, told{}},
		"another selector":                            {pod("ns/p", "demo"), of(managed("ns/i"), bind("ns/b", "i", "Demo")), binding.Policy{}, told{}},
		"a star is an ordinary string":                {pod("ns/p", "demo"), of(managed("ns/i"), bind("ns/b", "i", "*")), binding.Policy{}, told{}},
		"a binding in old spelling":                   {pod("ns/p", "demo"), of(managed("ns/i"), legacyBinding), binding.Policy{}, told{Granted: []string{"ns/i"}}},
		"a binding that contradicts itself":           {pod("ns/p", "demo"), of(managed("ns/i"), clash), binding.Policy{}, told{Refused: []string{"InvalidBinding ns/b"}}},
		"a binding to nothing":                        {pod("ns/p", "demo"), of(bind("ns/b", "", "demo")), binding.Policy{}, told{Refused: []string{"InvalidBinding ns/b"}}},
		"a missing identity":                          {pod("ns/p", "demo"), of(bind("ns/b", "i", "demo")), binding.Policy{}, told{Refused: []string{"IdentityNotFound ns/b"}}},
		"an identity of another namespace's name":     {pod("ns/p", "demo"), of(managed("other/i"), bind("ns/b", "i", "demo")), binding.Policy{}, told{Refused: []string{"IdentityNotFound ns/b"}}},
		"an invalid identity, others go on":           {pod("ns/p", "demo"), of(managed("ns/i", broken), managed("ns/j"), bind("ns/b", "i", "demo"), bind("ns/c", "j", "demo")), binding.Policy{}, told{Granted: []string{"ns/j"}, Refused: []string{"InvalidIdentity ns/b"}}},
		"another namespace, by default":               {pod("ns/p", "demo"), of(managed("other/i"), bind("other/b", "i", "demo")), binding.Policy{}, told{Granted: []string{"other/i"}}},
		"another namespace, namespaced install":       {pod("ns/p", "demo"), of(managed("other/i"), bind("other/b", "i", "demo")), binding.Policy{Namespaced: true}, told{Refused: []string{"NamespaceMismatch other/b"}}},
		"another namespace, annotated identity":       {pod("ns/p", "demo"), of(managed("other/i", namespaced), bind("other/b", "i", "demo")), binding.Policy{}, told{Refused: []string{"NamespaceMismatch other/b"}}},
		"another namespace, federated identity":       {pod("ns/p", "demo"), of(managed("other/i", federated), bind("other/b", "i", "demo")), binding.Policy{}, told{Refused: []string{"NamespaceMismatch other/b"}}},
		"own namespace, annotated identity":           {pod("ns/p", "demo"), of(managed("ns/i", namespaced), bind("ns/b", "i", "demo")), binding.Policy{Namespaced: true}, told{Granted: []string{"ns/i"}}},
		"several identities, ordered":                 {pod("ns/p", "demo"), of(managed("ns/i"), managed("ns/j"), managed("a/k"), bind("a/x", "k", "demo"), bind("ns/c", "j", "demo"), bind("ns/b", "i", "demo")), binding.Policy{}, told{Granted: []string{"ns/i", "ns/j", "a/k"}}},
		"two bindings to one identity":                {pod("ns/p", "demo"), of(managed("ns/i"), bind("ns/b", "i", "demo"), bind("ns/c", "i", "demo")), binding.Policy{}, told{Granted: []string{"ns/i"}}},
		"one name in two namespaces, own first":       {pod("ns/p", "demo"), of(managed("a/i"), managed("ns/i"), bind("a/b", "i", "demo"), bind("ns/b", "i", "demo")), binding.Policy{}, told{Granted: []string{"ns/i"}, Refused: []string{"NameConflict a/b"}}},
		"one name in two foreign namespaces":          {pod("ns/p", "demo"), of(managed("c/i"), managed("a/i"), bind("c/b", "i", "demo"), bind("a/b", "i", "demo")), binding.Policy{}, told{Granted: []string{"a/i"}, Refused: []string{"NameConflict c/b"}}},
		"a broken namesake does not stand in the way": {pod("ns/p", "demo"), of(managed("ns/i", broken), managed("a/i"), bind("ns/b", "i", "demo"), bind("a/b", "i", "demo")), binding.Policy{}, told{Granted: []string{"a/i"}, Refused: []string{"InvalidIdentity ns/b"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := binding.Decide(test.pod, test.world, test.policy)
			if diff := cmp.Diff(test.want, tell(got)); diff != "" {
				t.Error(diff)
			}
			for _, refusal := range got.Refusals {
				if refusal.Message == "" {
					t.Errorf("%s says nothing", refusal.Reason)
				}
			}
		})
	}
}

func TestException(t *testing.T) {
	except := func(name string, labels map[string]string) *v1.AzurePodIdentityException {
		return &v1.AzurePodIdentityException{ObjectMeta: meta(name), Spec: v1.AzurePodIdentityExceptionSpec{PodLabels: labels}}
	}
	legacy := &v1.AzurePodIdentityException{ObjectMeta: meta("ns/old"), Spec: v1.AzurePodIdentityExceptionSpec{LegacyPodLabels: map[string]string{"app": "mic"}}}
	clash := except("ns/clash", map[string]string{"app": "mic"})
	clash.Spec.LegacyPodLabels = map[string]string{"app": "nmi"}
	mic := binding.Pod{Namespace: "ns", Name: "mic-0", Labels: map[string]string{"app": "mic", "tier": "node"}}

	for name, test := range map[string]struct {
		pod        binding.Pod
		exceptions []*v1.AzurePodIdentityException
		want       string
	}{
		"no exception":                        {mic, nil, ""},
		"one of its labels is enough":         {mic, []*v1.AzurePodIdentityException{except("ns/e", map[string]string{"app": "mic", "component": "mic"})}, "ns/e"},
		"the value in any case":               {mic, []*v1.AzurePodIdentityException{except("ns/e", map[string]string{"app": "MIC"})}, "ns/e"},
		"the key in its own case":             {mic, []*v1.AzurePodIdentityException{except("ns/e", map[string]string{"App": "mic"})}, ""},
		"another value":                       {mic, []*v1.AzurePodIdentityException{except("ns/e", map[string]string{"app": "nmi"})}, ""},
		"another namespace":                   {mic, []*v1.AzurePodIdentityException{except("other/e", map[string]string{"app": "mic"})}, ""},
		"no labels except nobody":             {mic, []*v1.AzurePodIdentityException{except("ns/e", nil)}, ""},
		"an absent label is not an empty one": {mic, []*v1.AzurePodIdentityException{except("ns/e", map[string]string{"x": ""})}, ""},
		"old spelling":                        {mic, []*v1.AzurePodIdentityException{legacy}, "ns/old"},
		"one that contradicts itself":         {mic, []*v1.AzurePodIdentityException{clash}, ""},
		"the first by name":                   {mic, []*v1.AzurePodIdentityException{except("ns/z", map[string]string{"app": "mic"}), except("ns/a", map[string]string{"app": "mic"})}, "ns/a"},
		"a name that begins with mic is none": {binding.Pod{Namespace: "default", Name: "microservice-0"}, []*v1.AzurePodIdentityException{except("default/mic", map[string]string{"app": "mic"})}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := binding.Exception(test.pod, test.exceptions)
			if ok != (test.want != "") || (ok && got.String() != test.want) {
				t.Errorf("got %v, %v, want %q", got, ok, test.want)
			}
		})
	}
}
