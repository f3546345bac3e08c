package state_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

const (
	owner      = "aaaaaaaa-0000-4000-8000-000000000001"
	group      = "/subscriptions/s/resourceGroups/G"
	scaleSetID = group + "/providers/Microsoft.Compute/virtualMachineScaleSets/vmss"
	vmID       = group + "/providers/Microsoft.Compute/virtualMachines/vmss"
)

func identityID(i int) string {
	return fmt.Sprintf("%s/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-%d", group, i)
}

func clientID(i int) string { return fmt.Sprintf("bbbbbbbb-0000-4000-8000-%012d", i) }

// azure has n identities, one scale set with one node, and an owner of it all.
func azure(t *testing.T, n int, latency time.Duration) (*state.State, *time.Time) {
	t.Helper()
	doc := model.Document{
		ScaleSets:       []model.ScaleSet{{ID: scaleSetID}},
		Nodes:           []model.Node{{Name: "node", ScaleSet: scaleSetID, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
		RoleAssignments: []model.RoleAssignment{{Principal: owner, Role: "Owner", Scope: "/subscriptions/s"}},
	}
	for i := range n {
		doc.Identities = append(doc.Identities, model.Identity{ID: identityID(i), ClientID: clientID(i)})
	}
	now := time.Unix(1_700_000_000, 0)
	s := state.New(state.Options{Now: func() time.Time { return now }, Settings: settings.Settings{ARM: settings.ARM{Latency: settings.Latency{ScaleSet: timing.Fixed(latency), VM: timing.Fixed(latency)}}}})
	if err := s.Replace(doc); err != nil {
		t.Fatal(err)
	}
	return s, &now
}

func parse(t *testing.T, s string) armid.ID {
	t.Helper()
	id, err := armid.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func patch(t *testing.T, add, remove []int) state.IdentityPatch {
	t.Helper()
	p := state.IdentityPatch{
		Principal: owner, Resource: parse(t, scaleSetID), Type: state.TypeUserAssigned, Add: map[armid.ID]string{}, Remove: map[armid.ID]string{},
	}
	for _, i := range add {
		p.Add[parse(t, identityID(i))] = identityID(i)
	}
	for _, i := range remove {
		p.Remove[parse(t, identityID(i))] = identityID(i)
	}
	return p
}

// usable lists which of n identities IMDS on the node knows.
func usable(t *testing.T, s *state.State, n int) []int {
	t.Helper()
	var found []int
	for i := range n {
		_, err := s.IdentityAt("node", state.Selector{ClientID: clientID(i)})
		switch {
		case err == nil:
			found = append(found, i)
		case !errors.Is(err, state.ErrIdentityNotFound):
			t.Fatal(err)
		}
	}
	return found
}

func shown(t *testing.T, s *state.State) []string {
	t.Helper()
	v, err := s.Resource(owner, parse(t, scaleSetID))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, identity := range v.User {
		ids = append(ids, identity.ID.Name())
	}
	return ids
}

// Whatever is asked in whatever order: IMDS knows exactly what the last
// operation that succeeded left, ARM shows what was asked last, and no ETag
// comes twice for two different blocks.
func TestIMDSFollowsTheLastOperationThatSucceeded(t *testing.T) {
	const n, latency = 6, time.Minute
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 0))
		s, now := azure(t, n, latency)
		inForce, asked := map[int]bool{}, map[int]bool{}
		etags := map[string]string{}
		for range 40 {
			var add, remove []int
			next := map[int]bool{}
			for i := range n {
				next[i] = asked[i]
				switch random.IntN(3) {
				case 0:
					add, next[i] = append(add, i), true
				case 1:
					remove, next[i] = append(remove, i), false
				}
			}
			p := patch(t, add, remove)
			if random.IntN(4) == 0 {
				p.Fate.Fail = &state.Failure{Code: "Failed"}
			}
			v, _, err := s.PatchIdentity(p)
			if err != nil {
				if !as[*state.IdentityBlockError](err) || len(keys(next)) != 0 {
					t.Fatalf("seed %d: %v for %v", seed, err, keys(next))
				}
				continue
			}
			if diff := cmp.Diff(keys(inForce), usable(t, s, n)); diff != "" {
				t.Fatalf("seed %d: while it runs (-want +got):\n%s", seed, diff)
			}
			if _, _, err := s.PatchIdentity(patch(t, []int{0}, nil)); !errors.Is(err, state.ErrBusy) {
				t.Fatalf("seed %d: a second operation got %v", seed, err)
			}
			*now = now.Add(latency)
			if p.Fate.Fail == nil {
				inForce = next
			}
			asked = inForce
			if diff := cmp.Diff(keys(inForce), usable(t, s, n)); diff != "" {
				t.Fatalf("seed %d: after it (-want +got):\n%s", seed, diff)
			}
			if seen, ok := etags[v.ETag]; ok {
				t.Fatalf("seed %d: etag %s again, for %s", seed, v.ETag, seen)
			}
			etags[v.ETag] = strings.Join(shown(t, s), ",")
		}
	}
}

func keys(set map[int]bool) []int {
	var all []int
	for i, in := range set {
		if in {
			all = append(all, i)
		}
	}
	slices.Sort(all)
	return all
}

func TestFailedReplaceOrAddChangesNothing(t *testing.T) {
	s, _ := azure(t, 1, 0)
	before := s.Snapshot()
	bad := model.Document{Identities: []model.Identity{{ID: identityID(7)}, {ID: "x"}}}
	if err := s.Replace(bad); !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "adding identity 2") {
		t.Errorf("Replace: got %v", err)
	}
	if _, err := s.Add(bad); !errors.Is(err, state.ErrInvalid) {
		t.Errorf("Add: got %v", err)
	}
	if diff := cmp.Diff(before, s.Snapshot(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

func TestSnapshotLoadsAgain(t *testing.T) {
	s, _ := azure(t, 3, 0)
	if _, err := s.Attach(model.Attachment{ScaleSet: scaleSetID, Identity: identityID(2)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(model.Document{
		VirtualMachines: []model.VirtualMachine{{ID: vmID, SystemAssigned: &model.SystemAssigned{}, UserAssigned: []string{identityID(1)}}},
		Nodes:           []model.Node{{Name: "vm", VM: vmID, Prefixes: []netip.Prefix{netip.MustParsePrefix("11.0.0.0/8")}}},
		StorageAccounts: []model.StorageAccount{{ID: group + "/providers/Microsoft.Storage/storageAccounts/abc", Containers: []model.Container{{Name: "def", Blobs: []model.Blob{{Name: "x", Content: "y"}}}}}},
	}); err != nil {
		t.Fatal(err)
	}
	before := s.Snapshot()
	if len(before.ScaleSets) != 1 || len(before.VirtualMachines) != 1 || len(before.Nodes) != 2 || len(before.StorageAccounts) != 1 {
		t.Errorf("the snapshot is %+v", before)
	}
	other := state.New(state.Options{})
	if err := other.Replace(before); err != nil {
		t.Fatal(err)
	}
	ignore := cmpopts.IgnoreFields(model.Resource{}, "ETag")
	if diff := cmp.Diff(before, other.Snapshot(), ignore, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOperationsAreForgotten(t *testing.T) {
	s, now := azure(t, 1, time.Minute)
	_, op, err := s.PatchIdentity(patch(t, []int{0}, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{0, state.InProgress}, {time.Minute, state.Succeeded}, {time.Hour, state.Succeeded}, {time.Second, ""}} {
		*now = now.Add(step.after)
		got, err := s.Operation(op.Subscription, op.Location, op.ID)
		if got.Status != step.want || (step.want == "") != errors.Is(err, state.ErrNotFound) {
			t.Errorf("after %s more: got %q, %v, want %q", step.after, got.Status, err, step.want)
		}
	}
	if diff := cmp.Diff([]int{0}, usable(t, s, 1)); diff != "" {
		t.Errorf("usable (-want +got):\n%s", diff)
	}
	for _, wrong := range [][3]string{{"t", op.Location, op.ID}, {op.Subscription, "mars", op.ID}, {op.Subscription, op.Location, "x"}} {
		if _, err := s.Operation(wrong[0], wrong[1], wrong[2]); !errors.Is(err, state.ErrNotFound) {
			t.Errorf("%v: got %v", wrong, err)
		}
	}
}

// An operation that nobody looks at for long still takes effect.
func TestOperationNobodyPollsIsNotLost(t *testing.T) {
	s, now := azure(t, 1, time.Minute)
	if _, _, err := s.PatchIdentity(patch(t, []int{0}, nil)); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(1000 * time.Hour)
	if diff := cmp.Diff([]int{0}, usable(t, s, 1)); diff != "" {
		t.Errorf("usable (-want +got):\n%s", diff)
	}
	if got := s.Snapshot().ScaleSets[0].ProvisioningState; got != state.Succeeded {
		t.Errorf("got %s", got)
	}
}

func TestNodeAt(t *testing.T) {
	s, _ := azure(t, 0, 0)
	add := func(name string, instance int, prefixes ...string) {
		t.Helper()
		n := model.Node{Name: name, ScaleSet: scaleSetID, Instance: instance}
		for _, p := range prefixes {
			n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
		}
		if _, err := s.Add(model.Document{Nodes: []model.Node{n}}); err != nil {
			t.Fatal(err)
		}
	}
	add("pods", 1, "10.244.1.7/24", "192.168.0.5/32")
	add("one", 2, "10.244.1.9/32")
	for addr, want := range map[string]string{
		"10.0.0.1": "node", "10.244.1.7": "pods", "10.244.1.9": "one", "192.168.0.5": "pods", "::ffff:10.244.1.9": "one",
		"192.168.0.6": "", "fd00::1": "",
	} {
		if got, ok := s.NodeAt(netip.MustParseAddr(addr)); got.Name != want || ok != (want != "") {
			t.Errorf("%s: got %q, want %q", addr, got.Name, want)
		}
	}
	if _, ok := s.NodeAt(netip.Addr{}); ok {
		t.Error("no address has a node")
	}
	_, err := s.Add(model.Document{Nodes: []model.Node{{Name: "again", ScaleSet: scaleSetID, Instance: 3, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.200/24")}}}})
	if !errors.Is(err, state.ErrInvalid) {
		t.Errorf("a prefix of another node, unmasked: got %v", err)
	}
}

// A scale set and a virtual machine of one name share nothing, and two virtual
// machines' nodes neither.
func TestResourcesOfOneNameAreApart(t *testing.T) {
	s, _ := azure(t, 2, 0)
	other := strings.Replace(vmID, "/G/", "/H/", 1)
	if _, err := s.Add(model.Document{
		VirtualMachines: []model.VirtualMachine{{ID: vmID}, {ID: other}},
		Nodes: []model.Node{
			{Name: "vm", VM: vmID, Prefixes: []netip.Prefix{netip.MustParsePrefix("11.0.0.0/8")}},
			{Name: "other", VM: strings.ToUpper(other), Prefixes: []netip.Prefix{netip.MustParsePrefix("12.0.0.0/8")}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	p := patch(t, []int{0}, nil)
	p.Resource = parse(t, vmID)
	v, _, err := s.PatchIdentity(p)
	if err != nil || v.Kind != state.TypeVirtualMachine || v.ID != vmID {
		t.Fatalf("got %+v, %v", v, err)
	}
	for node, want := range map[string]error{"vm": nil, "node": state.ErrIdentityNotFound, "other": state.ErrIdentityNotFound} {
		if _, err := s.IdentityAt(node, state.Selector{ClientID: clientID(0)}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", node, err, want)
		}
	}
	if info, _ := s.NodeAt(netip.MustParseAddr("12.0.0.1")); info.Kind != state.TypeVirtualMachine || info.Resource != other {
		t.Errorf("got %+v", info)
	}
}

func TestIdentityAtAnUnknownNode(t *testing.T) {
	s, _ := azure(t, 1, 0)
	if _, err := s.IdentityAt("gone", state.Selector{}); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestTypedErrorsSayWhatTheyMean(t *testing.T) {
	for want, err := range map[string]error{
		"p may not act at scope":          &state.AuthorizationError{Principal: "p", Action: "act", Scope: "scope"},
		"p may not assign a, b":           &state.LinkedAuthorizationError{Principal: "p", IDs: []string{"a", "b"}},
		"no identity a":                   &state.MissingIdentityError{IDs: []string{"a"}},
		`etag "1" is not the present "2"`: &state.PreconditionError{Given: `"1"`, Present: `"2"`},
		"why":                             &state.IdentityBlockError{Message: "why"},
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err.Error(), want)
		}
	}
}
