// Package quarantine decides which identities travel together in a request to
// ARM, which fails whole for one bad identity: what was refused so far in, the
// next batch out. It is the memory that keeps a bad identity from the good ones.
//
// It is pure and does no I/O. It must not know what else a request holds, nor
// who needs an identity.
//
// An identity is in one of four states, and the first that has any is served
// first:
//
//	fresh    never refused: all of them go together
//	unsure   in a request that was refused, and its fault may lie elsewhere
//	grouped  in a set that ARM refused, or that is left of one after parts of it
//	         went through: at least one of the set is bad
//	refused  named by ARM, or refused when it travelled alone
//
// A refused identity is tried again with growing delays: together with others
// only if ARM names those that are bad, else alone. No identity is ever taken
// for bad by inference, so that an error that passes costs requests and harms
// nobody.
package quarantine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// State is what is known of the identities of one resource. Its zero value is
// that of a resource that never refused anything. A State is never changed: its
// methods return another.
type State struct {
	// Refused are the identities that are known to be bad.
	Refused map[armid.ID]Refusal
	// Groups are disjoint sets with at least one bad identity each.
	Groups [][]armid.ID
	// Unsure may hold bad identities.
	Unsure []armid.ID
	// Streak is how many requests in a row were refused without a name.
	Streak int
	// Until keeps groups and unsure ones; zero does not.
	Until time.Time
}

// Refusal is what is known of a bad identity.
type Refusal struct {
	Reason  v1.Reason
	Message string
	// RetryAfter is when it may be tried again.
	RetryAfter time.Time
	// Attempts is how often it was refused in a row; zero after an edit.
	Attempts int
	// Named says that ARM named it.
	Named bool
	// Identities are the AzureIdentities that name it, by UID and generation.
	Identities []string
}

// Seen is what the state is settled by.
type Seen struct {
	// Wanted reports whether a pod needs an identity, Present whether it is on the
	// resource.
	Wanted, Present func(armid.ID) bool
	// Identities are the AzureIdentities that name an identity, as
	// [Refusal.Identities] has them; empty if there are none.
	Identities func(armid.ID) []string
	Now        time.Time
}

// Settle brings the state up to date with what is there:
//
//	the identity is…                        →
//	present                                 forgotten: it went through
//	refused, and an AzureIdentity of its    due at once, and like new: whoever edits it
//	was edited, added or deleted            wants to see the effect
//	refused, and nobody names it any more   forgotten
//	refused, and no pod needs it now        kept, for the pod that comes next
//	of a group, and no pod needs it         dropped; it may have been the bad one, so that
//	                                        the others of the group are unsure
func (s State) Settle(seen Seen) State {
	out := State{Streak: s.Streak, Until: s.Until, Refused: map[armid.ID]Refusal{}}
	for id, refusal := range s.Refused {
		identities := seen.Identities(id)
		if seen.Present(id) || len(identities) == 0 {
			continue
		}
		if !slices.Equal(refusal.Identities, identities) {
			refusal.Identities, refusal.Attempts, refusal.RetryAfter = identities, 0, seen.Now
		}
		out.Refused[id] = refusal
	}
	out.Unsure, out.Groups = s.settleSuspects(seen)
	if len(out.Groups) == 0 && len(out.Unsure) == 0 {
		out.Streak, out.Until = 0, time.Time{}
	}
	return out
}

func (s State) settleSuspects(seen Seen) (unsure []armid.ID, groups [][]armid.ID) {
	gone := func(id armid.ID) bool { return seen.Present(id) || !seen.Wanted(id) }
	unsure = slices.DeleteFunc(slices.Clone(s.Unsure), gone)
	for _, group := range s.Groups {
		left := slices.DeleteFunc(slices.Clone(group), gone)
		unwanted := slices.ContainsFunc(group, func(id armid.ID) bool { return gone(id) && !seen.Present(id) })
		if unwanted {
			unsure = union(unsure, left)
		} else if len(left) > 0 {
			groups = append(groups, left)
		}
	}
	return unsure, groups
}

// Batch returns which of the candidates, wanted and absent, to ask for next; at
// most limit. If there is nothing to ask for now, again is when there will be;
// zero is never.
func (s State) Batch(candidates []armid.ID, limit int, now time.Time) (batch []armid.ID, again time.Time) {
	fresh := slices.DeleteFunc(sorted(candidates), s.knows)
	if len(fresh) > 0 {
		return fresh[:min(limit, len(fresh))], time.Time{}
	}
	if suspects := s.suspects(); len(suspects) > 0 {
		if !s.Until.After(now) {
			return suspects[:min(limit, len(suspects))], time.Time{}
		}
		again = s.Until
	}
	due, next := s.due(candidates, now)
	if len(due) > 0 {
		return due[:min(limit, len(due))], time.Time{}
	}
	return nil, earlier(again, next)
}

// knows reports whether the identity has been in a refused request.
func (s State) knows(id armid.ID) bool {
	_, refused := s.Refused[id]
	return refused || s.Suspect(id)
}

// Suspect reports whether the identity was in a refused request, and it is not
// known yet whether it is bad.
func (s State) Suspect(id armid.ID) bool {
	return slices.Contains(s.Unsure, id) || slices.ContainsFunc(s.Groups, func(group []armid.ID) bool { return slices.Contains(group, id) })
}

// unsureFirst is how many times as many unsure identities there must be as there
// are in the largest group to be asked for before the group is split. Asked for
// earlier, they would be usable sooner; asked for later, they would cost fewer
// requests. With 2 a bad identity costs 1.5 requests for each halving.
const unsureFirst = 2

// suspects are the unsure ones if they are many, else the first half of the
// largest group.
func (s State) suspects() []armid.ID {
	if len(s.Groups) == 0 {
		return s.Unsure
	}
	largest := slices.MaxFunc(s.Groups, func(a, b []armid.ID) int { return cmp.Compare(len(a), len(b)) })
	if len(s.Unsure) >= unsureFirst*len(largest) {
		return s.Unsure
	}
	return largest[:(len(largest)+1)/2]
}

// due are the refused candidates whose time has come: those that ARM named, or
// one of the others; and the time of the next if there are none.
func (s State) due(candidates []armid.ID, now time.Time) (due []armid.ID, next time.Time) {
	var alone []armid.ID
	for _, id := range sorted(candidates) {
		refusal, refused := s.Refused[id]
		switch {
		case !refused:
		case refusal.RetryAfter.After(now):
			next = earlier(next, refusal.RetryAfter)
		case refusal.Named:
			due = append(due, id)
		default:
			alone = append(alone, id)
		}
	}
	if len(due) > 0 || len(alone) == 0 {
		return due, next
	}
	longest := slices.MinFunc(alone, func(a, b armid.ID) int { return s.Refused[a].RetryAfter.Compare(s.Refused[b].RetryAfter) })
	return []armid.ID{longest}, next
}

// earlier returns the earlier of two times, of which a zero one does not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (s State) clone() State {
	s.Refused = maps.Clone(s.Refused)
	if s.Refused == nil {
		s.Refused = map[armid.ID]Refusal{}
	}
	return s
}

func without(ids, drop []armid.ID) []armid.ID {
	return slices.DeleteFunc(slices.Clone(ids), func(id armid.ID) bool { return slices.Contains(drop, id) })
}

func union(a, b []armid.ID) []armid.ID { return sorted(append(slices.Clone(a), b...)) }

// sorted returns the distinct IDs in order, and leaves the list as it is.
func sorted(ids []armid.ID) []armid.ID {
	out := slices.Clone(ids)
	slices.SortFunc(out, armid.ID.Compare)
	return slices.Compact(out)
}
