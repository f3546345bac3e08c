package plan_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
)

const prefix = "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/"

// ids makes identities of one-letter names.
func ids(t testing.TB, names string) []armid.ID {
	t.Helper()
	var out []armid.ID
	for _, name := range names {
		id, err := armid.Parse(prefix + string(name))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, id)
	}
	return out
}

func names(in []armid.ID) string {
	var out []string
	for _, id := range in {
		out = append(out, id.Name())
	}
	return strings.Join(out, "")
}

// seen has the ETag "now".
func seen(t testing.TB, present string, updating bool) compute.Identities {
	t.Helper()
	out := compute.Identities{Type: compute.TypeNone, Present: map[armid.ID]string{}, ETag: "now", Updating: updating}
	for _, id := range ids(t, present) {
		out.Present[id] = "client-" + id.Name()
		out.Type = compute.TypeUserAssigned
	}
	return out
}

// records reads "a:owned b:attaching@before", in any order.
func records(text string) []v1.OwnedIdentity {
	var out []v1.OwnedIdentity
	for field := range strings.FieldsSeq(text) {
		name, state, _ := strings.Cut(field, ":")
		state, etag, _ := strings.Cut(state, "@")
		out = append(out, v1.OwnedIdentity{ResourceID: prefix + name, State: v1.OwnershipState(state), ETag: etag})
	}
	return out
}

func TestCompute(t *testing.T) {
	for name, test := range map[string]struct {
		present, wanted, refused, records string
		updating                          bool
		policy                            plan.Policy

		add, remove, there, pending string
		settled, before, after      string
		wait                        bool
	}{
		"nothing to do":                             {},
		"attached by somebody else, and enough":     {present: "a", wanted: "a", there: "a"},
		"the first pod":                             {wanted: "a", add: "a", pending: "a", before: "a:attaching@now", after: "a:owned"},
		"the last pod goes":                         {present: "ab", records: "a:owned", settled: "a:owned", remove: "a", before: "a:owned"},
		"nobody's record, nothing removed":          {present: "ab"},
		"a swap":                                    {present: "a", wanted: "b", records: "a:owned", settled: "a:owned", add: "b", remove: "a", pending: "b", before: "a:owned b:attaching@now", after: "b:owned"},
		"still used by another pod":                 {present: "a", wanted: "a", records: "a:owned", settled: "a:owned", there: "a"},
		"owned, and somebody removed it":            {wanted: "a", records: "a:owned", add: "a", pending: "a", before: "a:attaching@now", after: "a:owned"},
		"owned, removed, and not wanted":            {records: "a:owned"},
		"stopped before the patch":                  {wanted: "a", records: "a:attaching@now", add: "a", pending: "a", before: "a:attaching@now", after: "a:owned"},
		"stopped before the patch, pod gone":        {records: "a:attaching@before"},
		"stopped after the patch":                   {present: "a", wanted: "a", records: "a:attaching@before", settled: "a:owned", there: "a"},
		"stopped after the patch, pod gone":         {present: "a", records: "a:attaching@before", settled: "a:owned", remove: "a", before: "a:owned"},
		"present at the very ETag of the record":    {present: "a", records: "a:attaching@now"},
		"present, and the record has no ETag":       {present: "a", records: "a:attaching"},
		"our operation runs":                        {present: "ab", wanted: "ab", records: "a:attaching@before", updating: true, settled: "a:attaching@before", there: "b", pending: "a", wait: true},
		"our operation runs, and more is wanted":    {present: "a", wanted: "ac", records: "a:attaching@before", updating: true, settled: "a:attaching@before", pending: "ac", wait: true},
		"our removal runs, and may be taken back":   {records: "a:owned", updating: true, settled: "a:owned"},
		"somebody else's operation runs":            {present: "b", wanted: "ab", updating: true, add: "a", there: "b", pending: "a", before: "a:attaching@now", after: "a:owned"},
		"refused ones are left out":                 {wanted: "ab", refused: "a", add: "b", pending: "ab", before: "b:attaching@now", after: "b:owned"},
		"only refused ones are left":                {wanted: "a", refused: "a", pending: "a"},
		"protected by its resource ID":              {present: "a", records: "a:owned", settled: "a:owned", policy: plan.Policy{IDs: map[armid.ID]bool{ids(t, "a")[0]: true}}},
		"protected by its client ID":                {present: "a", records: "a:owned", settled: "a:owned", policy: plan.Policy{ClientIDs: map[identity.ClientID]bool{clientID(t, "CLIENT-A"): true}}},
		"protected, others still go":                {present: "ab", records: "a:owned b:owned", settled: "a:owned b:owned", remove: "b", before: "a:owned b:owned", after: "a:owned", policy: plan.Policy{IDs: map[armid.ID]bool{ids(t, "a")[0]: true}}},
		"more than one request holds":               {wanted: "abc", add: "ab", pending: "abc", before: "a:attaching@now b:attaching@now", after: "a:owned b:owned", policy: plan.Policy{Limit: 2}},
		"a record of the same identity, twice over": {present: "a", records: "A:owned a:owned", settled: "a:owned", remove: "a", before: "a:owned"},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan.Compute(plan.Snapshot{
				Seen: seen(t, test.present, test.updating), Wanted: ids(t, test.wanted),
				Refused: ids(t, test.refused), Records: records(test.records),
			}, test.policy)
			var add, remove string
			if p.Patch != nil {
				add, remove = names(p.Patch.Add), names(p.Patch.Remove)
			}
			got := []string{add, remove, names(p.There), names(p.Pending)}
			if diff := cmp.Diff([]string{test.add, test.remove, test.there, test.pending}, got); diff != "" {
				t.Errorf("add, remove, there, pending (-want +got):\n%s", diff)
			}
			if p.Wait != test.wait {
				t.Errorf("wait is %v", p.Wait)
			}
			for _, r := range []struct {
				what, want string
				got        []v1.OwnedIdentity
			}{{"settled", test.settled, p.Undo()}, {"before", test.before, p.Before}, {"after", test.after, p.After}} {
				if diff := cmp.Diff(records(r.want), r.got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("records %s (-want +got):\n%s", r.what, diff)
				}
			}
		})
	}
}

func clientID(t testing.TB, s string) identity.ClientID {
	t.Helper()
	out, err := identity.ParseClientID(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// FuzzCompute lets a controller meet any state, crash at any moment, and checks
// what must hold: it never detaches what it did not attach, and it ends with all
// that is wanted and nothing left behind.
func FuzzCompute(f *testing.F) {
	f.Add(uint64(1), uint8(0b0011), uint8(0b0101), uint8(0b1000))
	f.Add(uint64(7), uint8(0), uint8(0xff), uint8(0))
	f.Fuzz(func(t *testing.T, seed uint64, present, first, second uint8) {
		world := &arm{t: t, random: rand.New(rand.NewPCG(seed, 1)), state: seen(t, pick(present), false), foreign: ids(t, pick(present))}
		world.settle(pick(first))
		world.settle(pick(second))
		world.settle("")
		for id := range world.state.Present {
			if !slices.Contains(world.foreign, id) {
				t.Fatalf("%s was left behind", id)
			}
		}
		for _, id := range world.foreign {
			if !world.state.Has(id) {
				t.Fatalf("%s was somebody else's and is gone", id)
			}
		}
	})
}

func pick(mask uint8) string {
	var out []rune
	for i, name := range "abcdefgh" {
		if mask&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return string(out)
}

// arm is a scale set with a controller that may crash.
type arm struct {
	t       *testing.T
	random  *rand.Rand
	state   compute.Identities
	foreign []armid.ID
	records []v1.OwnedIdentity
	version int
}

// settle plays the controller until it has nothing to do for what is wanted.
func (a *arm) settle(wanted string) {
	a.t.Helper()
	for range 100 {
		if a.step(wanted) {
			return
		}
	}
	a.t.Fatal("does not come to an end")
}

// step is one pass: it may stop before the record, before the patch, after the
// patch, or not at all.
func (a *arm) step(wanted string) (done bool) {
	want := ids(a.t, wanted)
	a.random.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
	p := plan.Compute(plan.Snapshot{Seen: a.state, Wanted: want, Records: a.records}, plan.Policy{Limit: 3})
	if p.Patch == nil {
		a.records = p.Records
		for _, id := range want {
			if !a.state.Has(id) {
				a.t.Fatalf("%s is wanted and not there", id)
			}
		}
		return true
	}
	crash := a.random.IntN(5)
	if crash == 0 {
		return false
	}
	a.records = p.Before
	if crash == 1 {
		return false
	}
	a.state = a.state.Apply(p.Patch)
	a.version++
	a.state.ETag = string(rune('A' + a.version))
	if crash == 2 {
		return false
	}
	a.records = p.After
	return false
}
