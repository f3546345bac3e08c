package observe

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

func scaleSet(t *testing.T, name string) compute.Ref {
	t.Helper()
	ref, err := compute.ParseRef("/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// assignment is one of a pod's, in a version, of a managed identity.
func assignment(pod, version, identity string) *v1.AzureAssignedIdentity {
	return &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: strings.ToLower(pod), UID: types.UID(pod), ResourceVersion: version},
		Spec: v1.AzureAssignedIdentitySpec{Pod: pod, AzureIdentityRef: &v1.AzureIdentity{Spec: v1.AzureIdentitySpec{
			ResourceID: "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + identity, ClientID: "c",
		}}},
	}
}

// told is what needs say, in short: pod=identity, with ! for those that the cache
// is behind with.
func told(needs []Need) []string {
	var out []string
	for _, n := range needs {
		said := n.Assignment.Spec.Pod + "=" + n.ID.Name()
		if n.Behind {
			said += "!"
		}
		out = append(out, said)
	}
	return out
}

// readAll is a look at all assignments of a resource.
func readAll(m *memory, ref compute.Ref, all []*v1.AzureAssignedIdentity) []Need {
	_, _, epoch := m.take(ref)
	return m.replace(ref, epoch, all)
}

func TestMemory(t *testing.T) {
	set, other := scaleSet(t, "set"), scaleSet(t, "other")
	unassigned := assignment("b", "1", "two")
	unassigned.Status.Status = v1.AssignedIDUnassigned
	for name, test := range map[string]struct {
		first []*v1.AzureAssignedIdentity
		// wrote is what is written after the first look.
		wrote *v1.AzureAssignedIdentity
		then  []*v1.AzureAssignedIdentity
		want  []string
	}{
		"nothing":                              {nil, nil, nil, nil},
		"the same again":                       {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, nil, []*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, []string{"a=one"}},
		"a version is read once":               {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, nil, []*v1.AzureAssignedIdentity{assignment("a", "1", "two")}, []string{"a=one"}},
		"a new version is read":                {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, nil, []*v1.AzureAssignedIdentity{assignment("a", "2", "two")}, []string{"a=two"}},
		"another one comes":                    {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, nil, []*v1.AzureAssignedIdentity{assignment("a", "1", "one"), assignment("b", "1", "two")}, []string{"a=one", "b=two"}},
		"what needs nothing is not told":       {[]*v1.AzureAssignedIdentity{unassigned}, nil, []*v1.AzureAssignedIdentity{unassigned}, nil},
		"one is deleted and made again":        {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, nil, []*v1.AzureAssignedIdentity{assignment("A", "1", "two")}, []string{"A=two"}},
		"written, and the cache is behind":     {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, assignment("a", "1", "one"), []*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, []string{"a=one!"}},
		"written, and the cache has caught up": {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, assignment("a", "1", "one"), []*v1.AzureAssignedIdentity{assignment("a", "2", "one")}, []string{"a=one"}},
		"written, of a version long gone":      {[]*v1.AzureAssignedIdentity{assignment("a", "2", "one")}, assignment("a", "1", "one"), []*v1.AzureAssignedIdentity{assignment("a", "2", "one")}, []string{"a=one"}},
		"written, and deleted meanwhile":       {[]*v1.AzureAssignedIdentity{assignment("a", "1", "one")}, assignment("z", "1", "one"), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var o Observer
			readAll(&o.memory, other, []*v1.AzureAssignedIdentity{assignment("a", "1", "elsewhere")})
			readAll(&o.memory, set, test.first)
			if test.wrote != nil {
				o.Wrote(set, test.wrote)
			}
			if diff := cmp.Diff(test.want, told(readAll(&o.memory, set, test.then))); diff != "" {
				t.Error(diff)
			}
			if got := told(readAll(&o.memory, other, []*v1.AzureAssignedIdentity{assignment("a", "1", "elsewhere")})); strings.Join(got, "") != "a=elsewhere" {
				t.Errorf("the other one's is %v", got)
			}
		})
	}
}

func TestMemoryKeepsNothingOfTheGone(t *testing.T) {
	var m memory
	set := scaleSet(t, "set")
	readAll(&m, set, []*v1.AzureAssignedIdentity{assignment("a", "1", "one"), assignment("b", "1", "one")})
	readAll(&m, set, []*v1.AzureAssignedIdentity{assignment("b", "1", "one")})
	if l := m.of[set]; len(l.readings) != 1 || len(l.at) != 1 || len(l.users) != 1 {
		t.Errorf("%+v is kept of one", l)
	}
	if readAll(&m, set, nil); len(m.of) != 0 {
		t.Errorf("%v is kept of nothing", m.of)
	}
	readAll(&m, set, []*v1.AzureAssignedIdentity{assignment("a", "1", "one")})
	if m.update(set, map[client.ObjectKey]*v1.AzureAssignedIdentity{{Name: "a"}: nil}); len(m.of) != 0 {
		t.Errorf("%v is kept of the last one", m.of)
	}
}

func TestWantedIsDistinctAndSorted(t *testing.T) {
	var m memory
	needs := readAll(&m, scaleSet(t, "set"), []*v1.AzureAssignedIdentity{assignment("a", "1", "two"), assignment("b", "1", "one"), assignment("c", "1", "TWO")})
	var names []string
	for _, id := range Wanted(needs) {
		names = append(names, id.Name())
	}
	if diff := cmp.Diff([]string{"one", "two"}, names); diff != "" {
		t.Error(diff)
	}
	if Wanted(nil) != nil {
		t.Error("nobody needs anything, and something is wanted")
	}
}

// cluster is a cache: the assignments of nodes 0 and 1, which are of the scale
// set, and of node 2, which is of another one.
type cluster struct {
	client.WithWatch

	observer Observer
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	scheme, err := kube.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme)
	if err := kube.AddIndexes(t.Context(), indexer{builder}, nil); err != nil {
		t.Fatal(err)
	}
	for i, set := range []string{"set", "set", "other"} {
		builder.WithObjects(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node-", i)},
			Spec:       corev1.NodeSpec{ProviderID: fmt.Sprintf("azure://%s/virtualMachines/%d", scaleSet(t, set), i)},
		})
	}
	c := &cluster{WithWatch: builder.Build()}
	c.observer.Lookup = kube.Lookup{Reader: c}
	return c
}

type indexer struct{ *fake.ClientBuilder }

// IndexField adds an index to the client that is being built.
func (i indexer) IndexField(_ context.Context, object client.Object, field string, extract client.IndexerFunc) error {
	i.WithIndex(object, field, extract)
	return nil
}

// put makes an assignment, in place of one of that name.
func (c *cluster) put(t *testing.T, pod, node, identity string) {
	t.Helper()
	c.remove(t, pod)
	a := assignment(pod, "", identity)
	a.Spec.NodeName, a.UID = node, uuid.NewUUID()
	if err := c.Create(t.Context(), a); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) remove(t *testing.T, pod string) {
	t.Helper()
	if err := client.IgnoreNotFound(c.Delete(t.Context(), assignment(pod, "", "x"))); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) needs(t *testing.T, ref compute.Ref) []string {
	t.Helper()
	needs, err := c.observer.Needs(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(told(needs)))
}

// TestChanges: what is said to have changed is all that is looked at, and what is
// told of it is what a look at everything would tell.
func TestChanges(t *testing.T) {
	for name, test := range map[string]struct {
		change   func(*testing.T, *cluster)
		changed  []string
		unneeded []string
		needs    []string
	}{
		"nothing":                        {func(*testing.T, *cluster) {}, nil, nil, []string{"a=one", "b=one", "c=two"}},
		"one comes":                      {func(t *testing.T, c *cluster) { c.put(t, "d", "node-1", "one") }, []string{"d=one"}, nil, []string{"a=one", "b=one", "c=two", "d=one"}},
		"one comes to another resource":  {func(t *testing.T, c *cluster) { c.put(t, "d", "node-2", "one") }, nil, nil, []string{"a=one", "b=one", "c=two"}},
		"one comes to no node":           {func(t *testing.T, c *cluster) { c.put(t, "d", "node-9", "one") }, nil, nil, []string{"a=one", "b=one", "c=two"}},
		"one of two goes":                {func(t *testing.T, c *cluster) { c.remove(t, "a") }, nil, nil, []string{"b=one", "c=two"}},
		"the last one goes":              {func(t *testing.T, c *cluster) { c.remove(t, "c") }, nil, []string{"two"}, []string{"a=one", "b=one"}},
		"both go":                        {func(t *testing.T, c *cluster) { c.remove(t, "a"); c.remove(t, "b") }, nil, []string{"one", "one"}, []string{"c=two"}},
		"the last one moves away":        {func(t *testing.T, c *cluster) { c.put(t, "c", "node-2", "two") }, nil, []string{"two"}, []string{"a=one", "b=one"}},
		"one moves to another node":      {func(t *testing.T, c *cluster) { c.put(t, "c", "node-1", "two") }, []string{"c=two"}, nil, []string{"a=one", "b=one", "c=two"}},
		"one means another identity":     {func(t *testing.T, c *cluster) { c.put(t, "c", "node-0", "three") }, []string{"c=three"}, []string{"two"}, []string{"a=one", "b=one", "c=three"}},
		"the last one goes, another not": {func(t *testing.T, c *cluster) { c.remove(t, "c"); c.put(t, "d", "node-1", "two") }, []string{"d=two"}, nil, []string{"a=one", "b=one", "d=two"}},
		"all go":                         {func(t *testing.T, c *cluster) { c.remove(t, "a"); c.remove(t, "b"); c.remove(t, "c") }, nil, []string{"one", "one", "two"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, set := newCluster(t), scaleSet(t, "set")
			c.put(t, "a", "node-0", "one")
			c.put(t, "b", "node-1", "one")
			c.put(t, "c", "node-0", "two")
			c.needs(t, set)
			test.change(t, c)
			for _, name := range []string{"a", "b", "c", "d"} {
				c.observer.Changed(set, client.ObjectKey{Name: name})
			}
			changes, known, err := c.observer.Changes(t.Context(), set)
			if err != nil || !known {
				t.Fatalf("they are not known: %v", err)
			}
			// What is as it was, is told again.
			changes.Needs = slices.DeleteFunc(changes.Needs, func(n Need) bool { return !slices.Contains(test.changed, told([]Need{n})[0]) })
			if diff := cmp.Diff(test.changed, told(changes.Needs)); diff != "" {
				t.Errorf("changed: %s", diff)
			}
			var unneeded []string
			for _, id := range changes.Unneeded {
				unneeded = append(unneeded, id.Name())
			}
			slices.Sort(unneeded)
			if diff := cmp.Diff(test.unneeded, unneeded); diff != "" {
				t.Errorf("unneeded: %s", diff)
			}
			if diff := cmp.Diff(test.needs, c.needs(t, set)); diff != "" {
				t.Errorf("needed: %s", diff)
			}
			c.observer.Doubt(set)
			if diff := cmp.Diff(test.needs, c.needs(t, set)); diff != "" {
				t.Errorf("needed, as all say: %s", diff)
			}
		})
	}
}

// TestDoubt: after a doubt everything is looked at, also if it comes in the middle
// of a look at everything.
func TestDoubt(t *testing.T) {
	c, set := newCluster(t), scaleSet(t, "set")
	if _, known, err := c.observer.Changes(t.Context(), set); known || err != nil {
		t.Fatalf("what was never read is known: %v", err)
	}
	c.put(t, "a", "node-0", "one")
	c.needs(t, set)
	c.put(t, "b", "node-0", "one") // of which nobody tells
	if diff := cmp.Diff([]string{"a=one"}, c.needs(t, set)); diff != "" {
		t.Errorf("without a doubt: %s", diff)
	}
	c.observer.Doubt(set)
	if _, known, _ := c.observer.Changes(t.Context(), set); known {
		t.Error("what is in doubt is known")
	}
	_, _, epoch := c.observer.memory.take(set)
	all, err := c.observer.all(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	c.observer.Doubt(set)
	c.observer.Changed(set, client.ObjectKey{Name: "d"})
	c.observer.memory.replace(set, epoch, all)
	if _, known, _ := c.observer.Changes(t.Context(), set); known {
		t.Error("a doubt in the middle of a look was forgotten")
	}
	if noted, _, _ := c.observer.memory.take(set); len(noted) != 1 {
		t.Errorf("%v changed in the middle of a look", noted)
	}
	if diff := cmp.Diff([]string{"a=one", "b=one"}, c.needs(t, set)); diff != "" {
		t.Errorf("after a doubt: %s", diff)
	}
}

// BenchmarkMemory is a look at a scale set of 1,000 assignments of which one has
// changed: at all of them, and at that one.
func BenchmarkMemory(b *testing.B) {
	var m memory
	var set compute.Ref
	var all []*v1.AzureAssignedIdentity
	for range 1000 {
		all = append(all, assignment("pod-"+string(rune(0x4e00+len(all))), "1", "one"))
	}
	versions := []string{"1", "2"}
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			all[0].ResourceVersion = versions[i%2]
			if needs := readAll(&m, set, all); len(needs) != len(all) || needs[0].ID == (armid.ID{}) {
				b.Fatal("they are not needed")
			}
		}
	})
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			changed := *all[0]
			changed.ResourceVersion = versions[i%2]
			if changes := m.update(set, map[client.ObjectKey]*v1.AzureAssignedIdentity{client.ObjectKeyFromObject(&changed): &changed}); len(changes.Needs) != 1 {
				b.Fatal("it is not needed")
			}
		}
	})
}
