package plan_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
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

// keys are the names of a map's identities.
func keys[T any](in map[armid.ID]T) string {
	return names(slices.SortedFunc(maps.Keys(in), armid.ID.Compare))
}

// clientOf is the client ID that the AzureIdentity has for an identity of a
// one-letter name.
func clientOf(name string) string {
	return fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012x", name[0])
}

// naming is one AzureIdentity for each identity.
func naming(t testing.TB) map[armid.ID]plan.Naming {
	t.Helper()
	out := map[armid.ID]plan.Naming{}
	for _, id := range ids(t, "abcdefghz") {
		out[id] = plan.Naming{Objects: []string{"u@1"}, ClientIDs: []string{clientOf(id.Name())}}
	}
	return out
}

// refuse returns a state of identities that were refused just now.
func refuse(t testing.TB, refused string) quarantine.State {
	t.Helper()
	out := quarantine.State{Refused: map[armid.ID]quarantine.Refusal{}}
	for _, id := range ids(t, refused) {
		out.Refused[id] = quarantine.Refusal{RetryAfter: time.Unix(60, 0), Identities: []string{"u@1"}}
	}
	return out
}

// seen has the ETag "now".
func seen(t testing.TB, present string, updating bool) compute.Identities {
	t.Helper()
	out := compute.Identities{Type: compute.TypeNone, Present: map[armid.ID]string{}, ETag: "now", Updating: updating}
	for _, id := range ids(t, present) {
		out.Present[id] = clientOf(id.Name())
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
		// Of those present, ARM shows these without a client ID, and these with
		// another one than their AzureIdentities have.
		empty, other string
		attached     string // by us, for the client IDs of now, and unconfirmed
		updating     bool
		policy       plan.Policy

		add, remove, there, pending string
		settled, before, after      string
		strange, unconfirmed        string
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
		"the last pod of another goes meanwhile":    {present: "b", wanted: "a", refused: "a", records: "b:owned", settled: "b:owned", remove: "b", pending: "a", before: "b:owned"},
		"a refused one that is there":               {present: "a", wanted: "a", refused: "a", there: "a"},
		"inherited, and there":                      {present: "a", wanted: "a", records: "a:inherited", settled: "a:owned", there: "a"},
		"inherited, and not there":                  {records: "a:inherited"},
		"inherited, wanted, and not there":          {wanted: "a", records: "a:inherited", add: "a", pending: "a", before: "a:attaching@now", after: "a:owned"},
		"inherited, and nobody needs it":            {present: "ab", records: "a:inherited", settled: "a:owned", remove: "a", before: "a:owned"},
		"inherited, while an operation runs":        {present: "a", wanted: "a", records: "a:inherited", updating: true, settled: "a:inherited", there: "a"},
		"made again under its name":                 {present: "ab", wanted: "ab", empty: "a", records: "a:owned", settled: "a:owned", remove: "a", there: "b", pending: "a", strange: "a", before: "a:owned"},
		"made again, shown as another":              {present: "a", wanted: "a", other: "a", records: "a:owned", settled: "a:owned", remove: "a", there: "a", strange: "a", before: "a:owned"},
		"made again, somebody else attached it":     {present: "a", wanted: "a", empty: "a", pending: "a", strange: "a"},
		"made again, and nobody needs it":           {present: "a", empty: "a", records: "a:owned", settled: "a:owned", remove: "a", before: "a:owned"},
		"made again, while an operation runs":       {present: "a", wanted: "a", empty: "a", records: "a:owned", updating: true, settled: "a:owned", there: "a"},
		"made again, and immutable":                 {present: "a", wanted: "a", empty: "a", records: "a:owned", settled: "a:owned", pending: "a", strange: "a", policy: plan.Policy{ClientIDs: map[identity.ClientID]bool{clientID(t, clientOf("a")): true}}},
		"the AzureIdentity is wrong":                {present: "a", wanted: "a", other: "a", attached: "a", records: "a:owned", settled: "a:owned", there: "a", strange: "a", unconfirmed: "a"},
		"no principal, just after it was attached":  {present: "a", wanted: "a", empty: "a", attached: "a", records: "a:owned", settled: "a:owned", pending: "a", strange: "a", unconfirmed: "a"},
		"attached, and shown as it should be":       {present: "a", wanted: "a", attached: "a", records: "a:owned", settled: "a:owned", there: "a"},
		"attached, and gone again":                  {wanted: "a", attached: "a", unconfirmed: "a", add: "a", pending: "a", before: "a:attaching@now", after: "a:owned"},
		"attached, and nobody needs it now":         {attached: "a"},
		"protected by its resource ID":              {present: "a", records: "a:owned", settled: "a:owned", policy: plan.Policy{IDs: map[armid.ID]bool{ids(t, "a")[0]: true}}},
		"protected by its client ID":                {present: "a", records: "a:owned", settled: "a:owned", policy: plan.Policy{ClientIDs: map[identity.ClientID]bool{clientID(t, strings.ToUpper(clientOf("a"))): true}}},
		"protected, others still go":                {present: "ab", records: "a:owned b:owned", settled: "a:owned b:owned", remove: "b", before: "a:owned b:owned", after: "a:owned", policy: plan.Policy{IDs: map[armid.ID]bool{ids(t, "a")[0]: true}}},
		"more than one request holds":               {wanted: "abc", add: "ab", pending: "abc", before: "a:attaching@now b:attaching@now", after: "a:owned b:owned", policy: plan.Policy{Limit: 2}},
		"a record of the same identity, twice over": {present: "a", records: "A:owned a:owned", settled: "a:owned", remove: "a", before: "a:owned"},
	} {
		t.Run(name, func(t *testing.T) {
			snapshot := plan.Snapshot{
				Seen: seen(t, test.present, test.updating), Wanted: ids(t, test.wanted), Named: naming(t), Records: records(test.records),
				Quarantine: refuse(t, test.refused), Unconfirmed: map[armid.ID][]string{}, Now: time.Unix(0, 0),
			}
			for id, shown := range map[string]string{test.empty: "", test.other: clientOf("z")} {
				for _, id := range ids(t, id) {
					snapshot.Seen.Present[id] = shown
				}
			}
			for _, id := range ids(t, test.attached) {
				snapshot.Unconfirmed[id] = snapshot.Named[id].ClientIDs
			}
			p := plan.Compute(snapshot, test.policy)
			var add, remove string
			if p.Patch != nil {
				add, remove = names(p.Patch.Add), names(p.Patch.Remove)
			}
			got := []string{add, remove, names(p.There), names(p.Pending)}
			if diff := cmp.Diff([]string{test.add, test.remove, test.there, test.pending}, got); diff != "" {
				t.Errorf("add, remove, there, pending (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{test.strange, test.unconfirmed}, []string{keys(p.Estranged), keys(p.Unconfirmed)}); diff != "" {
				t.Errorf("strange, unconfirmed (-want +got):\n%s", diff)
			}
			if p.Wait != test.wait {
				t.Errorf("wait is %v", p.Wait)
			}
			if due := test.refused != "" && test.present == "" && p.Patch == nil; due == p.Again.IsZero() {
				t.Errorf("again at %v", p.Again)
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
