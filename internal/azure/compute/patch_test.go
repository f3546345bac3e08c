package compute_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

var textual = cmp.Comparer(func(a, b armid.ID) bool { return a == b })

// ids makes identities of one-letter names.
func ids(t testing.TB, names string) []armid.ID {
	t.Helper()
	var out []armid.ID
	for _, name := range names {
		out = append(out, userAssigned(t, string(name)))
	}
	return out
}

func userAssigned(t testing.TB, name string) armid.ID {
	t.Helper()
	return mustParse(t, group+"/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"+name)
}

func present(t testing.TB, kind compute.IdentityType, names string) compute.Identities {
	t.Helper()
	out := compute.Identities{Type: kind, Present: map[armid.ID]string{}}
	for _, id := range ids(t, names) {
		out.Present[id] = ""
	}
	return out
}

func TestIdentityPatch(t *testing.T) {
	for name, test := range map[string]struct {
		has                    compute.IdentityType
		present, wanted, owned string
		limit                  int
		add, remove            string
		want                   compute.IdentityType
		unreadable             bool
	}{
		"nothing wanted, nothing there":                  {has: compute.TypeNone},
		"what is wanted is there":                        {has: compute.TypeUserAssigned, present: "ab", wanted: "ba", owned: "a"},
		"the first identity":                             {has: compute.TypeNone, wanted: "a", add: "a", want: compute.TypeUserAssigned},
		"one more":                                       {has: compute.TypeUserAssigned, present: "a", wanted: "ab", owned: "a", add: "b", want: compute.TypeUserAssigned},
		"the first beside the system-assigned":           {has: compute.TypeSystemAssigned, wanted: "a", add: "a", want: compute.TypeBoth},
		"one more beside the system-assigned":            {has: compute.TypeBoth, present: "a", wanted: "ab", add: "b", want: compute.TypeBoth},
		"the last owned one goes":                        {has: compute.TypeUserAssigned, present: "a", owned: "a", remove: "a", want: compute.TypeNone},
		"the last owned one goes, system-assigned stays": {has: compute.TypeBoth, present: "a", owned: "a", remove: "a", want: compute.TypeSystemAssigned},
		"somebody else's stays":                          {has: compute.TypeUserAssigned, present: "ab", owned: "a", remove: "a", want: compute.TypeUserAssigned},
		"nothing owned, nothing removed":                 {has: compute.TypeUserAssigned, present: "ab"},
		"owned and gone already":                         {has: compute.TypeUserAssigned, present: "b", owned: "a"},
		"a swap is one request":                          {has: compute.TypeUserAssigned, present: "a", wanted: "b", owned: "a", add: "b", remove: "a", want: compute.TypeUserAssigned},
		"wanted and owned stays":                         {has: compute.TypeUserAssigned, present: "a", wanted: "a", owned: "a"},
		"wanted, owned and missing is added":             {has: compute.TypeNone, wanted: "a", owned: "a", add: "a", want: compute.TypeUserAssigned},
		"duplicates are one":                             {has: compute.TypeNone, wanted: "aaba", add: "ab", want: compute.TypeUserAssigned},
		"more than fit are split, additions first":       {has: compute.TypeUserAssigned, present: "xyz", wanted: "ab", owned: "xyz", limit: 3, add: "ab", remove: "x", want: compute.TypeUserAssigned},
		"a split removal leaves the type":                {has: compute.TypeUserAssigned, present: "xyz", owned: "xyz", limit: 2, remove: "xy", want: compute.TypeUserAssigned},
		"what cannot be read is kept":                    {has: compute.TypeUserAssigned, present: "a", owned: "a", unreadable: true, remove: "a", want: compute.TypeUserAssigned},
	} {
		t.Run(name, func(t *testing.T) {
			current := present(t, test.has, test.present)
			if test.unreadable {
				current.Unreadable = []string{"/odd"}
			}
			got := compute.IdentityPatch(current, ids(t, test.wanted), ids(t, test.owned), test.limit)
			var want *compute.Patch
			if test.want != "" {
				want = &compute.Patch{Add: ids(t, test.add), Remove: ids(t, test.remove), Type: test.want}
			}
			if diff := cmp.Diff(want, got, textual); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPatchBody(t *testing.T) {
	for name, test := range map[string]struct {
		patch compute.Patch
		want  map[armid.ID]bool
	}{
		"true adds and false removes":            {compute.Patch{Add: ids(t, "a"), Remove: ids(t, "b"), Type: compute.TypeUserAssigned}, map[armid.ID]bool{ids(t, "a")[0]: true, ids(t, "b")[0]: false}},
		"nothing left is the type alone":         {compute.Patch{Remove: ids(t, "a"), Type: compute.TypeNone}, nil},
		"system-assigned left is the type alone": {compute.Patch{Remove: ids(t, "a"), Type: compute.TypeSystemAssigned}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.patch.Body()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseIdentityType(t *testing.T) {
	for in, want := range map[string]compute.IdentityType{
		"": compute.TypeNone, "none": compute.TypeNone, "USERASSIGNED": compute.TypeUserAssigned,
		"SystemAssigned,UserAssigned": compute.TypeBoth, "SystemAssigned, UserAssigned": compute.TypeBoth,
	} {
		if got, known := compute.ParseIdentityType(in); got != want || !known {
			t.Errorf("%q is %q, %v", in, got, known)
		}
	}
	if _, known := compute.ParseIdentityType("Actor"); known {
		t.Error("an unknown type is known")
	}
}

func TestIdentityPatchSplitsAtARMsLimit(t *testing.T) {
	var wanted []armid.ID
	for i := range 2*compute.MaxIdentitiesPerRequest + 1 {
		wanted = append(wanted, userAssigned(t, fmt.Sprintf("id-%03d", i)))
	}
	current := present(t, compute.TypeNone, "")
	var sizes []int
	for range 4 {
		p := compute.IdentityPatch(current, wanted, nil, 0)
		if p == nil {
			break
		}
		sizes = append(sizes, len(p.Add))
		current = current.Apply(p)
	}
	if diff := cmp.Diff([]int{150, 150, 1}, sizes); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
}

// scenario is a random state over ten identities, from one number each.
func scenario(t testing.TB, kind uint8, bits [3]uint16, limit uint8) (current compute.Identities, wanted, owned []armid.ID, n int) { //nolint:revive // the four are one scenario
	types := []compute.IdentityType{compute.TypeNone, compute.TypeSystemAssigned, compute.TypeUserAssigned, compute.TypeBoth}
	pick := func(mask uint16) string {
		var names []rune
		for i, name := range "abcdefghij" {
			if mask&(1<<i) != 0 {
				names = append(names, name)
			}
		}
		return string(names)
	}
	current = present(t, types[kind%4], pick(bits[0]))
	return current, ids(t, pick(bits[1])), ids(t, pick(bits[2])), int(limit%5) + 1
}

func FuzzIdentityPatch(f *testing.F) {
	f.Add(uint8(0), uint16(0), uint16(1), uint16(0), uint8(1))
	f.Add(uint8(3), uint16(0x3ff), uint16(1), uint16(0x3ff), uint8(3))
	f.Fuzz(func(t *testing.T, kind uint8, has, wants, owns uint16, limit uint8) {
		current, wanted, owned, n := scenario(t, kind, [3]uint16{has, wants, owns}, limit)
		system := current.Type == compute.TypeSystemAssigned || current.Type == compute.TypeBoth
		first := current
		for range 25 {
			p := compute.IdentityPatch(current, wanted, owned, n)
			if diff := cmp.Diff(p, compute.IdentityPatch(current, shuffled(wanted), shuffled(owned), n), textual); diff != "" {
				t.Fatalf("the order matters:\n%s", diff)
			}
			if p == nil {
				holds(t, first, current, wanted, owned)
				return
			}
			checkPatch(t, p, wanted, owned, n)
			if after := p.Type == compute.TypeSystemAssigned || p.Type == compute.TypeBoth; after != system {
				t.Fatalf("the system-assigned identity changed: %s", p.Type)
			}
			current = current.Apply(p)
		}
		t.Fatal("does not come to an end")
	})
}

func checkPatch(t *testing.T, p *compute.Patch, wanted, owned []armid.ID, limit int) {
	t.Helper()
	if size := len(p.Add) + len(p.Remove); size == 0 || size > limit {
		t.Fatalf("names %d identities, limit %d", size, limit)
	}
	for _, id := range p.Remove {
		if !slices.Contains(owned, id) || slices.Contains(wanted, id) || slices.Contains(p.Add, id) {
			t.Fatalf("removes %s", id)
		}
	}
	if (p.Body() == nil) != (p.Type == compute.TypeNone || p.Type == compute.TypeSystemAssigned) {
		t.Fatalf("type %s with body %v", p.Type, p.Body())
	}
}

// holds checks the state that the patches led to.
func holds(t *testing.T, first, last compute.Identities, wanted, owned []armid.ID) {
	t.Helper()
	for _, id := range wanted {
		if !last.Has(id) {
			t.Fatalf("%s is missing", id)
		}
	}
	for id := range maps.Keys(first.Present) {
		if !last.Has(id) && (!slices.Contains(owned, id) || slices.Contains(wanted, id)) {
			t.Fatalf("%s was lost", id)
		}
	}
	for id := range maps.Keys(last.Present) {
		if slices.Contains(owned, id) && !slices.Contains(wanted, id) {
			t.Fatalf("%s was left behind", id)
		}
	}
}

func shuffled(in []armid.ID) []armid.ID {
	out := slices.Clone(in)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
