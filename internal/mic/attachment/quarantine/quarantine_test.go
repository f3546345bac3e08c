package quarantine_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
)

// read makes a state of a text: "unsure: a b | group: c d | group: e f | bad: g
// h | alone: i". Bad ones were named by ARM, all wait for a minute after 0.
func read(t testing.TB, text string) quarantine.State {
	t.Helper()
	out := quarantine.State{Refused: map[armid.ID]quarantine.Refusal{}}
	for part := range strings.SplitSeq(text, "|") {
		kind, names, _ := strings.Cut(strings.TrimSpace(part), ":")
		var ids []armid.ID
		for name := range strings.FieldsSeq(names) {
			ids = append(ids, id(t, name))
		}
		switch kind {
		case "unsure":
			out.Unsure = ids
		case "group":
			out.Groups = append(out.Groups, ids)
		case "bad", "alone":
			for _, id := range ids {
				out.Refused[id] = quarantine.Refusal{Attempts: 1, Named: kind == "bad", RetryAfter: time.Unix(60, 0), Identities: []string{"u@1"}}
			}
		}
	}
	return out
}

func list(t testing.TB, names string) []armid.ID {
	t.Helper()
	var out []armid.ID
	for name := range strings.FieldsSeq(names) {
		out = append(out, id(t, name))
	}
	return out
}

func namesOf(ids []armid.ID) string {
	var out []string
	for _, id := range ids {
		out = append(out, id.Name())
	}
	return strings.Join(out, " ")
}

func states() cmp.Option {
	return cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b armid.ID) bool { return a == b })}
}

func TestBatch(t *testing.T) {
	for name, test := range map[string]struct {
		state, candidates string
		until, now        int64 // seconds
		limit             int
		batch             string
		again             int64 // 0: never
	}{
		"nothing":                                    {},
		"all that is fresh":                          {candidates: "b a", batch: "a b"},
		"as many as fit":                             {candidates: "a b c", limit: 2, batch: "a b"},
		"fresh ones before suspects":                 {state: "group: a b | unsure: c", candidates: "a b c d", batch: "d"},
		"half of a group":                            {state: "group: a b c d", candidates: "a b c d", batch: "a b"},
		"the larger half of an odd one":              {state: "group: a b c", candidates: "a b c", batch: "a b"},
		"half of the largest group":                  {state: "group: a b | group: c d e f", candidates: "a b c d e f", batch: "c d"},
		"few unsure ones wait for the group":         {state: "group: a b | unsure: c d e", candidates: "a b c d e", batch: "a"},
		"many unsure ones go before":                 {state: "group: a b | unsure: c d e f", candidates: "a b c d e f", batch: "c d e f"},
		"unsure ones alone":                          {state: "unsure: c", candidates: "c", batch: "c"},
		"the last of a group is tried by itself":     {state: "group: a", candidates: "a", batch: "a"},
		"suspects before refused ones":               {state: "group: a b | bad: c", candidates: "a b c", now: 100, batch: "a"},
		"the search waits":                           {state: "group: a b", candidates: "a b", until: 50, now: 40, again: 50},
		"the search waits, fresh ones do not":        {state: "group: a b", candidates: "a b c", until: 50, now: 40, batch: "c"},
		"the search waits, refused ones do not":      {state: "group: a b | bad: c", candidates: "a b c", until: 90, now: 60, batch: "c"},
		"the search has waited":                      {state: "group: a b", candidates: "a b", until: 50, now: 50, batch: "a"},
		"refused ones wait":                          {state: "bad: a | alone: b", candidates: "a b", now: 59, again: 60},
		"refused ones that nobody needs":             {state: "bad: a | alone: b", now: 100},
		"those that ARM names, together":             {state: "bad: a b | alone: c", candidates: "a b c", now: 60, batch: "a b"},
		"those that ARM does not name, one by one":   {state: "alone: a b", candidates: "a b", now: 60, batch: "a"},
		"the sooner of the search and a refused one": {state: "group: a b | bad: c", candidates: "a b c", until: 70, now: 1, again: 60},
	} {
		t.Run(name, func(t *testing.T) {
			s := read(t, test.state)
			if test.until > 0 {
				s.Until = time.Unix(test.until, 0)
			}
			if test.limit == 0 {
				test.limit = 150
			}
			batch, again := s.Batch(list(t, test.candidates), test.limit, time.Unix(test.now, 0))
			if got := namesOf(batch); got != test.batch {
				t.Errorf("got %q, want %q", got, test.batch)
			}
			if test.again == 0 != again.IsZero() || test.again > 0 && again.Unix() != test.again {
				t.Errorf("again at %v, want %d", again, test.again)
			}
		})
	}
}

func TestSettle(t *testing.T) {
	for name, test := range map[string]struct {
		state, wanted, present string
		identities             string // of every one; empty: of none
		want                   string
		due                    string // these are due at once, and like new
	}{
		"nothing":                                  {identities: "u@1"},
		"a refused one is there":                   {state: "bad: a b", wanted: "a b", present: "a", identities: "u@1", want: "bad: b"},
		"a refused one that no pod needs now":      {state: "bad: a", identities: "u@1", want: "bad: a"},
		"a refused one that nobody names":          {state: "bad: a", wanted: "a"},
		"a refused one whose AzureIdentity edited": {state: "bad: a", wanted: "a", identities: "u@2", want: "bad: a", due: "a"},
		"half of a group went through":             {state: "group: a b c d", wanted: "a b c d", present: "a b", identities: "u@1", want: "group: c d"},
		"all of a group went through":              {state: "group: a b", wanted: "a b", present: "a b", identities: "u@1"},
		"one of a group is not needed":             {state: "group: a b c | unsure: d", wanted: "a b d", identities: "u@1", want: "unsure: a b d"},
		"one went through, another is not needed":  {state: "group: a b c", wanted: "a b", present: "a", identities: "u@1", want: "unsure: b"},
		"unsure ones there and not needed":         {state: "unsure: a b c", wanted: "a c", present: "a", identities: "u@1", want: "unsure: c"},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(30, 0)
			has := func(names string) func(armid.ID) bool {
				return func(id armid.ID) bool { return strings.Contains(" "+names+" ", " "+id.Name()+" ") }
			}
			got := read(t, test.state).Settle(quarantine.Seen{
				Wanted: has(test.wanted), Present: has(test.present), Now: now,
				Identities: func(armid.ID) []string { return strings.Fields(test.identities) },
			})
			want := read(t, test.want)
			for _, id := range list(t, test.due) {
				want.Refused[id] = quarantine.Refusal{RetryAfter: now, Named: true, Identities: strings.Fields(test.identities)}
			}
			if diff := cmp.Diff(want, got, states()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The streak ends with the search, so that the next one does not begin by
// waiting.
func TestSettleEndsTheStreak(t *testing.T) {
	s := read(t, "group: a")
	s.Streak, s.Until = 20, time.Unix(99, 0)
	got := s.Settle(quarantine.Seen{Wanted: func(armid.ID) bool { return true }, Present: func(armid.ID) bool { return true }, Identities: func(armid.ID) []string { return nil }})
	if got.Streak != 0 || !got.Until.IsZero() {
		t.Errorf("got %+v", got)
	}
	if got := s.Accept(); got.Streak != 0 || !got.Until.IsZero() || len(got.Groups) != 1 {
		t.Errorf("after a success: %+v", got)
	}
}

func TestRefuse(t *testing.T) {
	for name, test := range map[string]struct {
		state, batch, named string
		want                string
		refused             string // those of them that were refused now
	}{
		"one is named":                             {batch: "a b c", named: "b", want: "bad: b", refused: "b"},
		"several are named":                        {batch: "a b c", named: "c b", want: "bad: b c", refused: "b c"},
		"another's name is no news":                {batch: "a b", named: "z", want: "group: a b"},
		"one alone":                                {batch: "a", want: "alone: a", refused: "a"},
		"a batch":                                  {batch: "a b", want: "group: a b"},
		"half of a group":                          {state: "group: a b c d", batch: "a b", want: "unsure: c d | group: a b"},
		"the unsure ones":                          {state: "group: a | unsure: b c", batch: "b c", want: "group: a | group: b c"},
		"one of a group, by name":                  {state: "group: a b c d", batch: "a b", named: "a", want: "unsure: b c d | bad: a", refused: "a"},
		"the last of a group":                      {state: "group: a | group: b c", batch: "a", want: "group: b c | alone: a", refused: "a"},
		"refused ones that ARM names no longer":    {state: "bad: a b", batch: "a b", want: "alone: a b"},
		"a refused one, named again":               {state: "bad: a b", batch: "a b", named: "a", want: "bad: a b", refused: "a"},
		"one that was found alone, and is alone":   {state: "alone: a b", batch: "a", want: "alone: a b", refused: "a"},
		"one that was found alone, and is named":   {state: "alone: a | unsure: b", batch: "a", named: "a", want: "bad: a | unsure: b", refused: "a"},
		"one that was named, and now is not named": {state: "bad: a", batch: "a", want: "alone: a", refused: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			before, now := read(t, test.state), time.Unix(100, 0)
			got := before.Refuse(quarantine.Failure{
				Batch: list(t, test.batch), Named: list(t, test.named), Reason: v1.ReasonIdentityRefused, Message: "no",
				Identities: func(armid.ID) []string { return []string{"u@9"} }, Now: now,
			}, quarantine.Rules{Min: time.Minute, Max: time.Hour, Random: func() float64 { return 0.5 }})
			want := read(t, test.want)
			for _, id := range list(t, test.refused) {
				r := want.Refused[id]
				r.Reason, r.Message, r.Identities, r.Attempts = v1.ReasonIdentityRefused, "no", []string{"u@9"}, before.Refused[id].Attempts+1
				r.RetryAfter = now.Add(time.Minute << (r.Attempts - 1))
				want.Refused[id] = r
			}
			got.Streak = 0
			if diff := cmp.Diff(want, got, states()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(read(t, test.state), before, states()); diff != "" {
				t.Errorf("the state before was changed:\n%s", diff)
			}
		})
	}
}

// TestDelays: each refusal doubles the delay up to the longest, and chance moves
// it by a fifth at most.
func TestDelays(t *testing.T) {
	const shortest, longest = 30 * time.Second, 10 * time.Minute
	for _, chance := range []float64{0, 0.5, 0.999} {
		s, now := quarantine.State{}, time.Unix(1e9, 0)
		for attempt := range 40 {
			s = s.Refuse(quarantine.Failure{Batch: list(t, "a"), Now: now, Identities: func(armid.ID) []string { return nil }},
				quarantine.Rules{Min: shortest, Max: longest, Random: func() float64 { return chance }})
			want := float64(min(shortest<<min(attempt, 10), longest)) * (0.8 + 0.4*chance)
			got := s.Refused[id(t, "a")].RetryAfter.Sub(now)
			if got > time.Duration(want) || got < time.Duration(want)-time.Second {
				t.Errorf("attempt %d waits %s, want %s less a part of a second", attempt, got, time.Duration(want))
			}
			now = now.Add(got)
		}
	}
}

// FuzzStatus: what is written reads the same. Each byte places one identity.
func FuzzStatus(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 2, 3, 4, 4}, 3, int64(77))
	f.Add([]byte{3, 3, 4}, 0, int64(0))
	f.Fuzz(func(t *testing.T, places []byte, streak int, until int64) {
		s := quarantine.State{Refused: map[armid.ID]quarantine.Refusal{}}
		for i, id := range many(t, min(len(places), 50)) {
			switch place := places[i] % 5; place {
			case 0:
				s.Unsure = append(s.Unsure, id)
			case 1, 2:
				s.Refused[id] = quarantine.Refusal{Reason: v1.ReasonIdentityRefused, Named: place == 1, Attempts: i, RetryAfter: time.Unix(int64(i+1), 0), Identities: []string{"u@1"}}
			default:
				for len(s.Groups) <= int(place)-3 {
					s.Groups = append(s.Groups, nil)
				}
				s.Groups[place-3] = append(s.Groups[place-3], id)
			}
		}
		s.Groups = slices.DeleteFunc(s.Groups, func(g []armid.ID) bool { return len(g) == 0 })
		if len(s.Groups) > 0 || len(s.Unsure) > 0 {
			s.Streak, s.Until = max(0, streak%1000), time.Unix(max(0, until%1e9), 0)
		}
		var status v1.AzureIdentityAttachmentStatus
		s.Write(&status)
		if diff := cmp.Diff(s, quarantine.Parse(status), states()); diff != "" {
			t.Errorf("what was written reads otherwise (-written +read):\n%s", diff)
		}
	})
}

// What somebody else wrote into a status makes no harm.
func TestParseForeign(t *testing.T) {
	got := quarantine.Parse(v1.AzureIdentityAttachmentStatus{
		Refused: []v1.RefusedIdentity{{ResourceID: "odd"}, {ResourceID: strings.ToUpper(prefix + "a")}},
		Isolation: &v1.Isolation{
			Unsure: []string{"odd", prefix + "a", prefix + "b"},
			Groups: []v1.SuspectGroup{{}, {ResourceIDs: []string{prefix + "a"}}, {ResourceIDs: []string{prefix + "b", prefix + "c"}}, {ResourceIDs: []string{prefix + "c"}}},
		},
	})
	want := quarantine.State{Refused: map[armid.ID]quarantine.Refusal{id(t, "a"): {}}, Unsure: list(t, "b"), Groups: [][]armid.ID{list(t, "c")}}
	if diff := cmp.Diff(want, got, states()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
