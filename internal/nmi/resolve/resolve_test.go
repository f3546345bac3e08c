package resolve_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/resolve"
)

const armPrefix = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

// world is a cluster in memory.
type world struct {
	identities []*v1.AzureIdentity
	bindings   []*v1.AzureIdentityBinding
	assigned   []*v1.AzureAssignedIdentity
}

func (w *world) Bindings(string) []*v1.AzureIdentityBinding { return w.bindings }

func (w *world) Identity(key identity.Key) *v1.AzureIdentity {
	for _, id := range w.identities {
		if id.Namespace == key.Namespace && id.Name == key.Name {
			return id
		}
	}
	return nil
}

func (w *world) HasIdentity(clientID string, resourceID armid.ID) bool {
	return slices.ContainsFunc(w.identities, func(object *v1.AzureIdentity) bool {
		id, err := identity.FromObject(object)
		return err == nil && (id.ClientID.Matches(clientID) || (!resourceID.IsZero() && id.ResourceID == resourceID))
	})
}

func object(key string) metav1.ObjectMeta {
	namespace, name, _ := strings.Cut(key, "/")
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func azureIdentity(key string, changes ...func(*v1.AzureIdentity)) *v1.AzureIdentity {
	meta := object(key)
	out := &v1.AzureIdentity{ObjectMeta: meta, Spec: v1.AzureIdentitySpec{
		ClientID: "Client-" + meta.Name, ResourceID: armPrefix + meta.Name,
	}}
	for _, change := range changes {
		change(out)
	}
	return out
}

func azureBinding(key, id string) *v1.AzureIdentityBinding {
	return &v1.AzureIdentityBinding{ObjectMeta: object(key), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: id, Selector: "app"}}
}

func assigned(status string, id *v1.AzureIdentity, changes ...func(*v1.AzureAssignedIdentity)) *v1.AzureAssignedIdentity {
	out := &v1.AzureAssignedIdentity{
		Spec:   v1.AzureAssignedIdentitySpec{AzureIdentityRef: id, Pod: "pod", PodNamespace: "ns", NodeName: "node"},
		Status: v1.AzureAssignedIdentityStatus{Status: status},
	}
	for _, change := range changes {
		change(out)
	}
	return out
}

func podWith(label string) binding.Pod {
	return binding.Pod{Namespace: "ns", Name: "pod", Labels: map[string]string{v1.PodLabel: label}}
}

func (w *world) standard(policy binding.Policy, label string) resolve.Candidates {
	return resolve.Standard(resolve.StandardInput{Pod: podWith(label), Node: "node", Catalog: w, Policy: policy, Assigned: w.assigned})
}

func id(t testing.TB, name string) armid.ID {
	t.Helper()
	out, err := armid.ParseUserAssigned(armPrefix + name)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// answer is what a test sees of a choice: "a b" or "Reason".
func answer(choice resolve.Choice, reason v1.Reason) string {
	if reason != "" {
		return string(reason)
	}
	var names []string
	for _, id := range choice.Identities {
		names = append(names, id.String())
	}
	if choice.Several {
		names = append(names, "of several")
	}
	return strings.Join(names, " ")
}

func ask(query resolve.Query, c resolve.Candidates, w *world) string {
	choice, refused := resolve.Resolve(query, c, w)
	if refused != nil {
		return answer(choice, refused.Reason)
	}
	return answer(choice, "")
}

func namespaced(id *v1.AzureIdentity) {
	id.Annotations = map[string]string{v1.BehaviorAnnotation: v1.BehaviorNamespaced}
}

func noClientID(id *v1.AzureIdentity) { id.Spec.ClientID = "" }

func noIDs(id *v1.AzureIdentity) { id.Spec.ClientID, id.Spec.ResourceID = "", "" }

func principal(id *v1.AzureIdentity) {
	id.Spec = v1.AzureIdentitySpec{Type: v1.ServicePrincipal, ClientID: "sp", TenantID: "t", ClientPassword: &v1.SecretReference{Name: "n", Namespace: "ns"}}
}

func TestManaged(t *testing.T) {
	two := &world{
		identities: []*v1.AzureIdentity{azureIdentity("ns/b"), azureIdentity("ns/a"), azureIdentity("ns/other"), azureIdentity("far/c")},
		bindings:   []*v1.AzureIdentityBinding{azureBinding("ns/bb", "b"), azureBinding("ns/ba", "a"), azureBinding("far/bc", "c")},
	}
	missing := &world{bindings: []*v1.AzureIdentityBinding{azureBinding("ns/b", "late")}, identities: []*v1.AzureIdentity{azureIdentity("ns/other")}}
	broken := &world{bindings: []*v1.AzureIdentityBinding{azureBinding("ns/b", "a")}, identities: []*v1.AzureIdentity{azureIdentity("ns/a", noIDs)}}
	bare := &world{bindings: []*v1.AzureIdentityBinding{azureBinding("ns/b", "a")}, identities: []*v1.AzureIdentity{azureIdentity("ns/a", noClientID)}}
	mixed := &world{identities: []*v1.AzureIdentity{azureIdentity("ns/a", principal), azureIdentity("ns/b")}, bindings: two.bindings}
	for name, test := range map[string]struct {
		world *world
		label string
		query resolve.Query
		want  string
	}{
		"nothing asked, several":       {two, "app", resolve.Query{}, "ns/a of several"},
		"by client ID in another case": {two, "app", resolve.Query{ClientID: "CLIENT-B"}, "ns/b"},
		"by resource ID":               {two, "app", resolve.Query{ResourceID: id(t, "B")}, "ns/b"},
		"by both":                      {two, "app", resolve.Query{ClientID: "client-b", ResourceID: id(t, "b")}, "ns/b"},
		"by two that differ":           {two, "app", resolve.Query{ClientID: "client-b", ResourceID: id(t, "a")}, "InvalidRequest"},
		"by one that is bound and one that is nobody's": {two, "app", resolve.Query{ClientID: "client-b", ResourceID: id(t, "zz")}, "InvalidRequest"},
		"by object ID":                                {two, "app", resolve.Query{ObjectID: "o"}, "ns/a ns/b"},
		"by object ID and client ID":                  {two, "app", resolve.Query{ObjectID: "o", ClientID: "client-a"}, "ns/a"},
		"one that is not bound":                       {two, "app", resolve.Query{ClientID: "client-other"}, "NotBound"},
		"one that is bound far away":                  {two, "app", resolve.Query{ClientID: "client-c"}, "NotBound"},
		"one that nobody knows":                       {two, "app", resolve.Query{ClientID: "client-zz"}, "UnknownIdentity"},
		"a resource ID is no client ID":               {two, "app", resolve.Query{ClientID: armPrefix + "b"}, "UnknownIdentity"},
		"no label":                                    {two, "", resolve.Query{}, "NotSelected"},
		"no label, one asked for":                     {two, "", resolve.Query{ClientID: "client-a"}, "NotSelected"},
		"a label that nothing selects":                {two, "else", resolve.Query{}, "NoBinding"},
		"a label that nothing selects, one asked for": {two, "else", resolve.Query{ClientID: "client-a"}, "NoBinding"},
		"bound to what is missing":                    {missing, "app", resolve.Query{}, "IdentityNotFound"},
		"bound to what is missing, asked for":         {missing, "app", resolve.Query{ClientID: "client-late"}, "IdentityNotFound"},
		"bound to what is missing, another asked for": {missing, "app", resolve.Query{ClientID: "client-other"}, "NotBound"},
		"a resource ID alone":                         {bare, "app", resolve.Query{}, "ns/a"},
		"a resource ID alone, asked for":              {bare, "app", resolve.Query{ResourceID: id(t, "a")}, "ns/a"},
		"a resource ID alone has no client ID":        {bare, "app", resolve.Query{ClientID: "client-a"}, "UnknownIdentity"},
		"no ID at all is no default":                  {broken, "app", resolve.Query{}, "InvalidIdentity"},
		"another kind is not skipped":                 {mixed, "app", resolve.Query{}, "ns/a of several"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, ask(test.query, resolve.Managed(podWith(test.label), test.world), test.world)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStandard(t *testing.T) {
	a, b, far := azureIdentity("ns/a"), azureIdentity("ns/b"), azureIdentity("aaa/far")
	bound := func(objects ...*v1.AzureAssignedIdentity) *world {
		return &world{
			identities: []*v1.AzureIdentity{a, b, far, azureIdentity("ns/other")},
			bindings:   []*v1.AzureIdentityBinding{azureBinding("ns/ba", "a")},
			assigned:   objects,
		}
	}
	edited := bound(assigned(v1.AssignedIDAssigned, azureIdentity("ns/a", func(i *v1.AzureIdentity) { i.Spec.ClientID = "before" })))
	legacy := azureIdentity("ns/a", func(i *v1.AzureIdentity) {
		i.Spec = v1.AzureIdentitySpec{LegacyClientID: "Client-a", LegacyResourceID: armPrefix + "a"}
	})
	elsewhere := func(change func(*v1.AzureAssignedIdentitySpec)) *world {
		return bound(assigned(v1.AssignedIDAssigned, a, func(o *v1.AzureAssignedIdentity) { change(&o.Spec) }))
	}
	for name, test := range map[string]struct {
		world  *world
		policy binding.Policy
		query  resolve.Query
		want   string
	}{
		"assigned":                           {bound(assigned(v1.AssignedIDAssigned, a)), binding.Policy{}, resolve.Query{}, "ns/a"},
		"assigned before there were states":  {bound(assigned(v1.AssignedIDLegacy, a)), binding.Policy{}, resolve.Query{}, "ns/a"},
		"legacy spelling":                    {bound(assigned(v1.AssignedIDAssigned, legacy)), binding.Policy{}, resolve.Query{ClientID: "client-a"}, "ns/a"},
		"created":                            {bound(assigned(v1.AssignedIDCreated, a)), binding.Policy{}, resolve.Query{}, "NotAttached"},
		"created, asked for":                 {bound(assigned(v1.AssignedIDCreated, a)), binding.Policy{}, resolve.Query{ClientID: "client-a"}, "NotAttached"},
		"created, by object ID":              {bound(assigned(v1.AssignedIDCreated, a)), binding.Policy{}, resolve.Query{ObjectID: "o"}, "NotAttached"},
		"unassigned":                         {bound(assigned(v1.AssignedIDUnassigned, a)), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"a state of the future":              {bound(assigned("Else", a)), binding.Policy{}, resolve.Query{}, "NotAttached"},
		"being deleted":                      {bound(assigned(v1.AssignedIDAssigned, a, func(o *v1.AzureAssignedIdentity) { o.DeletionTimestamp = &metav1.Time{} })), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"none yet":                           {bound(), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"none yet, another asked for":        {bound(), binding.Policy{}, resolve.Query{ClientID: "client-other"}, "NotBound"},
		"none yet, a stranger asked for":     {bound(), binding.Policy{}, resolve.Query{ClientID: "zz"}, "UnknownIdentity"},
		"of another pod":                     {elsewhere(func(s *v1.AzureAssignedIdentitySpec) { s.Pod = "pod2" }), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"of a namesake":                      {elsewhere(func(s *v1.AzureAssignedIdentitySpec) { s.PodNamespace = "ns2" }), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"on another node":                    {elsewhere(func(s *v1.AzureAssignedIdentitySpec) { s.NodeName = "node2" }), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"without a copy":                     {elsewhere(func(s *v1.AzureAssignedIdentitySpec) { s.AzureIdentityRef = nil }), binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"out of date":                        {edited, binding.Policy{}, resolve.Query{}, "NotAssigned"},
		"out of date, new one asked for":     {edited, binding.Policy{}, resolve.Query{ClientID: "client-a"}, "NotAssigned"},
		"twice, once created":                {bound(assigned(v1.AssignedIDCreated, a), assigned(v1.AssignedIDAssigned, a)), binding.Policy{}, resolve.Query{}, "ns/a"},
		"assigned, its last binding is gone": {&world{identities: []*v1.AzureIdentity{a}, assigned: []*v1.AzureAssignedIdentity{assigned(v1.AssignedIDAssigned, a)}}, binding.Policy{}, resolve.Query{}, "NoBinding"},
		"assigned, its binding selects others": {&world{
			identities: []*v1.AzureIdentity{a}, assigned: []*v1.AzureAssignedIdentity{assigned(v1.AssignedIDAssigned, a)},
			bindings: []*v1.AzureIdentityBinding{{ObjectMeta: object("ns/ba"), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "a", Selector: "else"}}},
		}, binding.Policy{}, resolve.Query{ClientID: "client-a"}, "NoBinding"},
		"one assigned, one created":           {bound(assigned(v1.AssignedIDCreated, a), assigned(v1.AssignedIDAssigned, b)), binding.Policy{}, resolve.Query{}, "ns/b of several"},
		"one assigned, the created asked for": {bound(assigned(v1.AssignedIDCreated, a), assigned(v1.AssignedIDAssigned, b)), binding.Policy{}, resolve.Query{ClientID: "client-a"}, "NotAttached"},
		"own namespace before the alphabet":   {bound(assigned(v1.AssignedIDAssigned, far), assigned(v1.AssignedIDAssigned, b), assigned(v1.AssignedIDAssigned, a)), binding.Policy{}, resolve.Query{}, "ns/a of several"},
		"from afar":                           {bound(assigned(v1.AssignedIDAssigned, far)), binding.Policy{}, resolve.Query{ClientID: "client-far"}, "aaa/far"},
		"from afar, install is namespaced":    {bound(assigned(v1.AssignedIDAssigned, far)), binding.Policy{Namespaced: true}, resolve.Query{ClientID: "client-far"}, "NotBound"},
		"no ID in the copy":                   {&world{identities: []*v1.AzureIdentity{}, assigned: []*v1.AzureAssignedIdentity{assigned(v1.AssignedIDAssigned, azureIdentity("ns/a", noIDs))}}, binding.Policy{}, resolve.Query{}, "InvalidIdentity"},
		"all filtered by namespace":           {&world{assigned: []*v1.AzureAssignedIdentity{assigned(v1.AssignedIDAssigned, azureIdentity("far/x", namespaced))}}, binding.Policy{}, resolve.Query{}, "NamespaceMismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, ask(test.query, test.world.standard(test.policy, "app"), test.world)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAServicePrincipalWaitsForNoAssignment(t *testing.T) {
	w := &world{
		identities: []*v1.AzureIdentity{azureIdentity("ns/a", func(i *v1.AzureIdentity) { i.Spec.Federation = &v1.Federation{} })},
		bindings:   []*v1.AzureIdentityBinding{azureBinding("ns/b", "a")},
	}
	if got := ask(resolve.Query{}, w.standard(binding.Policy{}, "app"), w); got != "ns/a" {
		t.Errorf("got %s", got)
	}
}

// A copy decides which Secret is read and where it is sent, so that every field
// of it counts.
func TestACopyOfAServicePrincipal(t *testing.T) {
	for name, test := range map[string]struct {
		status string
		change func(*v1.AzureIdentitySpec)
	}{
		"is used":                          {v1.AssignedIDAssigned, func(*v1.AzureIdentitySpec) {}},
		"need not be attached":             {v1.AssignedIDCreated, func(*v1.AzureIdentitySpec) {}},
		"is out of date with its Secret":   {v1.AssignedIDAssigned, func(s *v1.AzureIdentitySpec) { s.ClientPassword.Name = "old" }},
		"is out of date with its tenant":   {v1.AssignedIDAssigned, func(s *v1.AzureIdentitySpec) { s.TenantID = "old" }},
		"is out of date with its endpoint": {v1.AssignedIDAssigned, func(s *v1.AzureIdentitySpec) { s.ADEndpoint = "https://old.example" }},
		"is out of date with its others":   {v1.AssignedIDAssigned, func(s *v1.AzureIdentitySpec) { s.AuxiliaryTenantIDs = []string{"old"} }},
	} {
		t.Run(name, func(t *testing.T) {
			object := azureIdentity("ns/a", principal)
			copied := object.DeepCopy()
			test.change(&copied.Spec)
			w := &world{
				identities: []*v1.AzureIdentity{object}, bindings: []*v1.AzureIdentityBinding{azureBinding("ns/b", "a")},
				assigned: []*v1.AzureAssignedIdentity{assigned(test.status, copied)},
			}
			choice, refused := resolve.Resolve(resolve.Query{}, w.standard(binding.Policy{}, "app"), w)
			want, err := identity.FromObject(object)
			if err != nil || refused != nil || len(choice.Identities) != 1 || choice.Identities[0] != want {
				t.Errorf("got %+v, %v, want %+v, %v", choice.Identities, refused, want, err)
			}
		})
	}
}

func TestByObjectIDTheRestIsSaid(t *testing.T) {
	a, b := azureIdentity("ns/a"), azureIdentity("ns/b")
	for name, test := range map[string]struct {
		status string
		want   v1.Reason
	}{
		"another is still to come": {v1.AssignedIDCreated, v1.ReasonNotAttached},
		"all are there":            {v1.AssignedIDAssigned, v1.ReasonUnknownIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{
				identities: []*v1.AzureIdentity{a, b}, bindings: []*v1.AzureIdentityBinding{azureBinding("ns/ba", "a"), azureBinding("ns/bb", "b")},
				assigned: []*v1.AzureAssignedIdentity{assigned(v1.AssignedIDAssigned, a), assigned(test.status, b)},
			}
			choice, refused := resolve.Resolve(resolve.Query{ObjectID: "o"}, w.standard(binding.Policy{}, "app"), w)
			if refused != nil || choice.Otherwise == nil || choice.Otherwise.Reason != test.want {
				t.Errorf("got %+v, %v", choice.Otherwise, refused)
			}
		})
	}
}

// Refusals tell what to do, and which pod it is about.
func TestRefusalsNameThePod(t *testing.T) {
	w := &world{identities: []*v1.AzureIdentity{azureIdentity("ns/a"), azureIdentity("ns/b")}, bindings: []*v1.AzureIdentityBinding{azureBinding("ns/b", "a")}}
	for name, query := range map[string]resolve.Query{
		"not assigned": {}, "not bound": {ClientID: "client-b"}, "unknown": {ClientID: "zz"},
	} {
		t.Run(name, func(t *testing.T) {
			_, refused := resolve.Resolve(query, w.standard(binding.Policy{}, "app"), w)
			if refused == nil || !strings.Contains(refused.Message, "pod ns/pod") {
				t.Errorf("got %v", refused)
			}
		})
	}
}

// No order of the objects changes the answer, nothing is ever chosen that is
// not assigned to this pod, and a choice always matches what was asked for.
func TestResolveProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	states := []string{v1.AssignedIDAssigned, v1.AssignedIDCreated, v1.AssignedIDUnassigned, v1.AssignedIDLegacy}
	keys := []string{"ns/a", "ns/b", "aaa/a", "zzz/c"}
	queries := []resolve.Query{{}, {ClientID: "client-a"}, {ResourceID: id(t, "b")}, {ClientID: "client-c", ResourceID: id(t, "c")}, {ClientID: "client-b", ResourceID: id(t, "c")}}
	for range 2000 {
		w := &world{}
		mine := map[string]bool{}
		for _, key := range keys {
			w.identities = append(w.identities, azureIdentity(key))
			if random.IntN(2) == 0 {
				w.bindings = append(w.bindings, azureBinding(key, object(key).Name))
			}
			pod, state := []string{"pod", "else"}[random.IntN(2)], states[random.IntN(len(states))]
			w.assigned = append(w.assigned, assigned(state, azureIdentity(key), func(o *v1.AzureAssignedIdentity) { o.Spec.Pod = pod }))
			mine[key] = pod == "pod" && (state == v1.AssignedIDAssigned || state == v1.AssignedIDLegacy)
		}
		query := queries[random.IntN(len(queries))]
		first := ask(query, w.standard(binding.Policy{}, "app"), w)
		random.Shuffle(len(w.assigned), func(i, j int) { w.assigned[i], w.assigned[j] = w.assigned[j], w.assigned[i] })
		random.Shuffle(len(w.bindings), func(i, j int) { w.bindings[i], w.bindings[j] = w.bindings[j], w.bindings[i] })
		if again := ask(query, w.standard(binding.Policy{}, "app"), w); again != first {
			t.Fatalf("%+v: %s, then %s", query, first, again)
		}
		choice, refused := resolve.Resolve(query, w.standard(binding.Policy{}, "app"), w)
		if refused == nil && len(choice.Identities) != 1 {
			t.Fatalf("%+v: chose %v", query, choice.Identities)
		}
		for _, chosen := range choice.Identities {
			if !mine[chosen.String()] {
				t.Fatalf("%+v: chose %s, which is not the pod's", query, chosen.Key)
			}
			if query.ClientID != "" && !chosen.ClientID.Matches(query.ClientID) || !query.ResourceID.IsZero() && chosen.ResourceID != query.ResourceID {
				t.Fatalf("%+v: chose %s", query, chosen.Key)
			}
		}
	}
}

// FuzzResolve asks by IDs of any spelling among identities of any spelling. What
// is chosen is the pod's own, usable, and matches each ID that was asked for;
// there is always an answer, and a refusal has words.
func FuzzResolve(f *testing.F) {
	f.Add("client-a", "", "", "Client-A", armPrefix+"a", v1.AssignedIDAssigned, "app", false)
	f.Add("", "", armPrefix+"A", "", armPrefix+"a", "", "app", true)
	f.Add("", "object", "", "client", "", v1.AssignedIDCreated, "", false)
	f.Add("client", "", armPrefix+"b", "client", armPrefix+"a", v1.AssignedIDUnassigned, "app", false)
	f.Fuzz(func(t *testing.T, clientID, objectID, resourceID, hasClientID, hasResourceID, status, label string, namespaced bool) {
		query := resolve.Query{ClientID: clientID, ObjectID: objectID}
		if parsed, err := armid.ParseUserAssigned(resourceID); err == nil {
			query.ResourceID = parsed
		}
		near, far := azureIdentity("ns/a"), azureIdentity("far/b")
		for _, object := range []*v1.AzureIdentity{near, far} {
			object.Spec.ClientID, object.Spec.ResourceID = hasClientID, hasResourceID
		}
		w := &world{
			identities: []*v1.AzureIdentity{near, far, azureIdentity("ns/other")},
			bindings:   []*v1.AzureIdentityBinding{azureBinding("ns/a", "a"), azureBinding("far/b", "b")},
			assigned:   []*v1.AzureAssignedIdentity{assigned(status, near), assigned(status, far)},
		}
		usable := status == v1.AssignedIDAssigned || status == v1.AssignedIDLegacy
		for name, candidates := range map[string]resolve.Candidates{
			"managed": resolve.Managed(podWith(label), w), "standard": w.standard(binding.Policy{Namespaced: namespaced}, label),
		} {
			choice, refused := resolve.Resolve(query, candidates, w)
			if (refused == nil) != (len(choice.Identities) > 0) || refused != nil && (refused.Reason == "" || refused.Message == "") {
				t.Fatalf("%s: chose %v, refused %v", name, choice.Identities, refused)
			}
			for _, chosen := range choice.Identities {
				switch {
				case label != "app":
					t.Fatalf("%s: chose for a pod that nothing selects", name)
				case name == "standard" && !usable:
					t.Fatalf("chose what is %q", status)
				case chosen.Namespace != "ns" && (name == "managed" || namespaced):
					t.Fatalf("%s: chose %s across namespaces", name, chosen.Key)
				case chosen.ClientID.String() == "" && chosen.ResourceID.IsZero():
					t.Fatalf("%s: chose the node's default", name)
				case clientID != "" && !strings.EqualFold(clientID, chosen.ClientID.String()), !query.ResourceID.IsZero() && chosen.ResourceID != query.ResourceID:
					t.Fatalf("%s: asked %+v, chose %+v", name, query, chosen)
				}
			}
		}
	})
}
