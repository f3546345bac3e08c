package quarantine

import (
	"slices"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Rules are how long refused identities wait.
type Rules struct {
	// Min is the first delay, doubled with each refusal up to Max. Each is varied
	// by a fifth either way, so that resources that share a bad identity do not
	// try it at one time.
	Min, Max time.Duration
	// Random returns a number from 0 up to 1.
	Random func() float64
}

const (
	// patience is how many requests in a row may be refused without a name before
	// each next one waits: so many are no longer the fault of a few identities.
	// It is ARM's burst for one scale set.
	patience = 12
	// crowd is how many identities may be tried alone without taking turns, and
	// turn is how far apart the turns are then: half of what ARM refills.
	crowd = 12
	turn  = 30 * time.Second
)

// Failure is ARM's refusal of a batch.
type Failure struct {
	Batch []armid.ID
	// Named are those that ARM names; empty if it names none of the batch.
	Named   []armid.ID
	Reason  v1.Reason
	Message string
	// Identities are as in [Seen].
	Identities func(armid.ID) []string
	Now        time.Time
}

// Refuse returns the state after a failure:
//
//	ARM names…    the batch…                 →
//	some of it    any                        those are refused; the others are as they were, but
//	                                         what was grouped with a named one is unsure
//	none          one identity               it is refused
//	none          of refused ones            they are not tried together again
//	none          several                    they are a group; what was grouped with them is
//	                                         unsure, since they explain it
func (s State) Refuse(f Failure, rules Rules) State {
	named := slices.DeleteFunc(sorted(f.Named), func(id armid.ID) bool { return !slices.Contains(f.Batch, id) })
	out := s.clone()
	switch {
	case len(named) > 0:
		jitter := rules.Random()
		for _, id := range named {
			out = out.refuse(id, f, true, rules.delay(s.Refused[id].Attempts, jitter))
		}
		return out
	case len(f.Batch) == 1:
		id := f.Batch[0]
		delay := rules.delay(s.Refused[id].Attempts, rules.Random())
		out = out.refuse(id, f, false, max(delay, out.turns(id)))
	case s.retried(f.Batch):
		for _, id := range f.Batch {
			refusal := out.Refused[id]
			refusal.Named = false
			out.Refused[id] = refusal
		}
	default:
		out = out.take(f.Batch)
		out.Groups = append(out.Groups, sorted(f.Batch))
	}
	if s.retried(f.Batch) {
		return out // no news for the search
	}
	return out.count(f.Now, rules)
}

// Accept returns the state after a request for the batch went through. What went
// through is forgotten when it is seen to be there.
func (s State) Accept() State {
	s.Streak, s.Until = 0, time.Time{}
	return s
}

// refuse puts the identity among the refused ones.
func (s State) refuse(id armid.ID, f Failure, named bool, delay time.Duration) State {
	out := s.take([]armid.ID{id})
	out.Refused[id] = Refusal{
		Reason: f.Reason, Message: f.Message, Named: named, Attempts: s.Refused[id].Attempts + 1,
		RetryAfter: f.Now.Add(delay).Truncate(time.Second), Identities: f.Identities(id),
	}
	return out
}

// take removes identities that explain a refusal from the groups and the unsure
// ones.
func (s State) take(ids []armid.ID) State {
	out := s
	out.Unsure, out.Groups = without(s.Unsure, ids), nil
	for _, group := range s.Groups {
		left := without(group, ids)
		if len(left) == len(group) {
			out.Groups = append(out.Groups, group)
		} else {
			out.Unsure = union(out.Unsure, left)
		}
	}
	return out
}

// count counts a refusal without a name, and makes the search wait after too
// many.
func (s State) count(now time.Time, rules Rules) State {
	s.Streak++
	if s.Streak >= patience {
		s.Until = now.Add(rules.delay(s.Streak-patience, rules.Random())).Truncate(time.Second)
	}
	return s
}

// turns is how long an identity must wait if there are so many others that are
// tried alone.
func (s State) turns(id armid.ID) time.Duration {
	others := 0
	for other, refusal := range s.Refused {
		if other != id && !refusal.Named {
			others++
		}
	}
	if others < crowd {
		return 0
	}
	return time.Duration(others) * turn
}

// retried reports whether a batch is of refused ones only.
func (s State) retried(ids []armid.ID) bool {
	return !slices.ContainsFunc(ids, func(id armid.ID) bool { _, refused := s.Refused[id]; return !refused })
}

// delay is the wait after the attempts before this one; random is from 0 up to 1.
func (r Rules) delay(attempts int, random float64) time.Duration {
	out := r.Min
	for ; attempts > 0 && out < r.Max; attempts-- {
		out *= 2
	}
	return time.Duration(float64(min(out, r.Max)) * (0.8 + 0.4*random))
}
