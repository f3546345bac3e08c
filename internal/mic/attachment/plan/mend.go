package plan

import (
	"maps"
	"slices"
	"strings"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Estranged is an identity on the resource that is not the one that its
// AzureIdentities mean. One that was deleted and created again under its name is
// shown without a client ID, or with its former one, until it is detached and
// attached again: Azure does not do that by itself.
type Estranged struct {
	// Shown is the client ID that ARM shows, in lower case; empty: no principal is
	// behind the identity, and nobody gets a token for it.
	Shown string
	// Mend says that it is ours to detach and attach anew.
	Mend bool
}

// useless reports whether nobody can use the identity.
func (e *Estranged) useless() bool { return e != nil && e.Shown == "" }

// estranged are the wanted identities that are there and that ARM shows with a
// client ID that no AzureIdentity has:
//
//	who attached it  for these client IDs, and not confirmed  →
//	we               no                                       detached, to be attached anew
//	we               yes                                      left alone: it is what it is, and
//	                                                          so the AzureIdentity is wrong
//	somebody else    any                                      left alone, and reported
//
// While an operation runs ARM may show anything, and nothing is concluded.
func (s Snapshot) estranged(records []v1.OwnedIdentity, policy Policy) map[armid.ID]*Estranged {
	out := map[armid.ID]*Estranged{}
	for _, id := range s.Wanted {
		shown, says := strings.ToLower(s.Seen.Present[id]), s.Named[id].ClientIDs
		if s.Seen.Updating || !s.Seen.Has(id) || len(says) == 0 || slices.Contains(says, shown) {
			continue
		}
		ours := slices.ContainsFunc(records, func(r v1.OwnedIdentity) bool {
			return r.State == v1.OwnershipOwned && r.ResourceID == id.String()
		})
		before, tried := s.Unconfirmed[id]
		again := !tried || !slices.Equal(before, says)
		kept := slices.ContainsFunc(append([]string{shown}, says...), func(clientID string) bool { return policy.Protects(id, clientID) })
		out[id] = &Estranged{Shown: shown, Mend: ours && again && !kept}
	}
	return out
}

// unconfirmed forgets the identities that are as they should be, and those that
// no pod needs.
func (s Snapshot) unconfirmed() map[armid.ID][]string {
	out := maps.Clone(s.Unconfirmed)
	if out == nil {
		out = map[armid.ID][]string{}
	}
	maps.DeleteFunc(out, func(id armid.ID, _ []string) bool {
		right := s.Seen.Has(id) && !s.Seen.Updating && slices.Contains(s.Named[id].ClientIDs, strings.ToLower(s.Seen.Present[id]))
		return right || !slices.Contains(s.Wanted, id)
	})
	return out
}

func mendable(strange map[armid.ID]*Estranged) []armid.ID {
	var out []armid.ID
	for id, e := range strange {
		if e.Mend {
			out = append(out, id)
		}
	}
	return out
}
