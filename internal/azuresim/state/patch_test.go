package state_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
)

// ARM's order of checks: the first that fails is the answer, whatever else is
// wrong with the request.
func TestChecksComeInARMsOrder(t *testing.T) {
	type change func(*state.IdentityPatch)
	stranger := change(func(p *state.IdentityPatch) { p.Principal = clientID(99) })
	nowhere := change(func(p *state.IdentityPatch) { p.Resource = mustParse(scaleSetID + "2") })
	foreign := change(func(p *state.IdentityPatch) {
		id := "/subscriptions/t/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x"
		p.Add[mustParse(id)] = id
	})
	wrongType := change(func(p *state.IdentityPatch) { p.Type = state.TypeNone })
	missing := change(func(p *state.IdentityPatch) { p.Add[mustParse(identityID(9))] = identityID(9) })
	stale := change(func(p *state.IdentityPatch) { p.IfMatch = `"0"` })
	busy := change(func(*state.IdentityPatch) {})
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	order := []struct {
		name   string
		change change
		want   func(error) bool
	}{
		{"no right on the scale set", stranger, as[*state.AuthorizationError]},
		{"no such scale set", nowhere, is(state.ErrNotFound)},
		{"no right on an identity", foreign, as[*state.LinkedAuthorizationError]},
		{"a map with type None", wrongType, as[*state.IdentityBlockError]},
		{"an identity that is not there", missing, as[*state.MissingIdentityError]},
		{"a stale etag", stale, as[*state.PreconditionError]},
		{"another operation", busy, is(state.ErrBusy)},
	}
	s, _ := azure(t, 2, time.Minute)
	if _, _, err := s.PatchIdentity(patch(t, []int{0}, nil)); err != nil {
		t.Fatal(err)
	}
	before := s.Snapshot().ScaleSets[0]
	for i, first := range order {
		t.Run(first.name, func(t *testing.T) {
			p := patch(t, []int{1}, nil)
			for _, later := range order[i:] {
				later.change(&p)
			}
			if _, _, err := s.PatchIdentity(p); !first.want(err) {
				t.Errorf("got %v", err)
			}
			if diff := cmp.Diff(before, s.Snapshot().ScaleSets[0]); diff != "" {
				t.Errorf("the refusal changed the scale set:\n%s", diff)
			}
		})
	}
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func mustParse(s string) armid.ID {
	id, err := armid.Parse(s)
	if err != nil {
		panic(err)
	}
	return id
}

func TestIdentityKeepsTheSpellingOfItsFirstAttachment(t *testing.T) {
	s, _ := azure(t, 1, 0)
	for _, spelling := range []string{strings.ToUpper(identityID(0)), identityID(0)} {
		p := patch(t, nil, nil)
		p.Add[mustParse(spelling)] = spelling
		v, _, err := s.PatchIdentity(p)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(strings.ToUpper(identityID(0)), "RESOURCEGROUPS", "resourcegroups", 1)
		if len(v.User) != 1 || v.User[0].Spelling != want {
			t.Errorf("got %+v, want %s", v.User, want)
		}
	}
}

func TestSystemAssignedIdentityLivesAsLongAsItsType(t *testing.T) {
	s, _ := azure(t, 1, 0)
	send := func(kind string, add ...int) state.Resource {
		t.Helper()
		p := patch(t, add, nil)
		p.Type = kind
		v, _, err := s.PatchIdentity(p)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	first := send(state.TypeSystemAssigned)
	both := send(state.TypeBoth, 0)
	if first.System == nil || both.System == nil || *first.System != *both.System || both.Type != state.TypeBoth {
		t.Errorf("it changed when a user-assigned one joined: %+v, %+v", first.System, both.System)
	}
	if _, err := s.IdentityAt("node", state.Selector{ObjectID: first.System.PrincipalID}); err != nil {
		t.Errorf("IMDS does not know it: %v", err)
	}
	if got := send(state.TypeUserAssigned, 0); got.System != nil || got.Type != state.TypeUserAssigned {
		t.Errorf("it outlived its type: %+v", got)
	}
	if again := send(state.TypeSystemAssigned); again.System == nil || *again.System == *first.System || len(again.User) != 0 {
		t.Errorf("made again it must be another, and alone: %+v", again)
	}
	if got := send(state.TypeNone); got.System != nil || got.Type != state.TypeNone {
		t.Errorf("type None left %+v", got)
	}
	if _, err := s.IdentityAt("node", state.Selector{}); !errors.Is(err, state.ErrIdentityNotFound) {
		t.Errorf("IMDS has %v", err)
	}
}

func TestRemovingWhatIsNotThereIsNoError(t *testing.T) {
	s, _ := azure(t, 3, 0)
	if _, err := s.Attach(model.Attachment{ScaleSet: scaleSetID, Identity: identityID(0)}); err != nil {
		t.Fatal(err)
	}
	v, _, err := s.PatchIdentity(patch(t, nil, []int{1, 7}))
	if err != nil {
		t.Fatal(err)
	}
	if len(v.User) != 1 || v.User[0].ID.Name() != "id-0" {
		t.Errorf("got %+v", v.User)
	}
}

func TestLimitOfIdentitiesPerRequest(t *testing.T) {
	const n = state.MaxIdentitiesPerRequest
	s, _ := azure(t, n+1, 0)
	var all []int
	for i := range n + 1 {
		all = append(all, i)
	}
	if _, _, err := s.PatchIdentity(patch(t, all[:100], all[100:])); !as[*state.IdentityBlockError](err) {
		t.Errorf("%d named: got %v", n+1, err)
	}
	if _, _, err := s.PatchIdentity(patch(t, all[:n], nil)); err != nil {
		t.Errorf("%d named: got %v", n, err)
	}
	if _, _, err := s.PatchIdentity(patch(t, all[n:], nil)); err != nil {
		t.Errorf("the limit is per request, not per scale set: got %v", err)
	}
	if got := len(usable(t, s, n+1)); got != n+1 {
		t.Errorf("%d are usable, want %d", got, n+1)
	}
}
