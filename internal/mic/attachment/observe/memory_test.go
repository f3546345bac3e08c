package observe

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
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
		ObjectMeta: metav1.ObjectMeta{UID: types.UID(pod), ResourceVersion: version},
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
			o.memory.read(other, []*v1.AzureAssignedIdentity{assignment("a", "1", "elsewhere")})
			o.memory.read(set, test.first)
			if test.wrote != nil {
				o.Wrote(set, test.wrote)
			}
			if diff := cmp.Diff(test.want, told(o.memory.read(set, test.then))); diff != "" {
				t.Error(diff)
			}
			if got := told(o.memory.read(other, []*v1.AzureAssignedIdentity{assignment("a", "1", "elsewhere")})); strings.Join(got, "") != "a=elsewhere" {
				t.Errorf("the other one's is %v", got)
			}
		})
	}
}

func TestMemoryKeepsNothingOfTheGone(t *testing.T) {
	var m memory
	set := scaleSet(t, "set")
	m.read(set, []*v1.AzureAssignedIdentity{assignment("a", "1", "one"), assignment("b", "1", "one")})
	m.read(set, []*v1.AzureAssignedIdentity{assignment("b", "1", "one")})
	if len(m.of[set]) != 1 {
		t.Errorf("%d are kept of one", len(m.of[set]))
	}
	if m.read(set, nil); len(m.of) != 0 {
		t.Errorf("%v is kept of nothing", m.of)
	}
}

func TestWantedIsDistinctAndSorted(t *testing.T) {
	var m memory
	needs := m.read(scaleSet(t, "set"), []*v1.AzureAssignedIdentity{assignment("a", "1", "two"), assignment("b", "1", "one"), assignment("c", "1", "TWO")})
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

// BenchmarkMemory is a look at a scale set of 1,000 assignments of which one has
// changed.
func BenchmarkMemory(b *testing.B) {
	var m memory
	var set compute.Ref
	var all []*v1.AzureAssignedIdentity
	for range 1000 {
		all = append(all, assignment("pod-"+string(rune(0x4e00+len(all))), "1", "one"))
	}
	versions := []string{"1", "2"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		all[0].ResourceVersion = versions[i%2]
		if needs := m.read(set, all); len(needs) != len(all) || needs[0].ID == (armid.ID{}) {
			b.Fatal("they are not needed")
		}
	}
}
