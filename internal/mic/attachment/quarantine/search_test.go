package quarantine_test

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
)

const prefix = "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/"

func id(t testing.TB, name string) armid.ID {
	t.Helper()
	out, err := armid.Parse(prefix + name)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// many returns n identities in order.
func many(t testing.TB, n int) []armid.ID {
	t.Helper()
	var out []armid.ID
	for i := range n {
		out = append(out, id(t, fmt.Sprintf("i%04d", i)))
	}
	return out
}

// naming is what ARM says of bad identities in a request.
type naming int

const (
	none naming = iota
	first
	all
)

// arm is a resource with identities that ARM refuses, and a controller that
// starts anew before each request, with what it wrote.
type arm struct {
	t       testing.TB
	wanted  []armid.ID
	bad     map[armid.ID]bool
	naming  naming
	limit   int
	random  *rand.Rand
	now     time.Time
	edition string // of every AzureIdentity

	unwanted map[armid.ID]bool
	present  map[armid.ID]bool
	status   v1.AzureIdentityAttachmentStatus
	requests [][]armid.ID
	searches int               // requests that are no second try of a bad one
	exposed  map[armid.ID]bool // were refused, by name or alone
}

func newARM(t testing.TB, wanted []armid.ID, bad ...armid.ID) *arm {
	t.Helper()
	a := &arm{
		t: t, wanted: wanted, bad: map[armid.ID]bool{}, limit: 150, random: rand.New(rand.NewPCG(1, 2)), now: time.Unix(1e9, 0),
		edition: "1", unwanted: map[armid.ID]bool{}, present: map[armid.ID]bool{}, exposed: map[armid.ID]bool{},
	}
	for _, id := range bad {
		a.bad[id] = true
	}
	return a
}

func (a *arm) rules() quarantine.Rules {
	return quarantine.Rules{Min: 30 * time.Second, Max: 10 * time.Minute, Random: a.random.Float64}
}

func (a *arm) identities(armid.ID) []string { return []string{"uid@" + a.edition} }

func (a *arm) state() quarantine.State {
	return quarantine.Parse(a.status).Settle(quarantine.Seen{
		Wanted: func(id armid.ID) bool { return !a.unwanted[id] }, Present: func(id armid.ID) bool { return a.present[id] }, Identities: a.identities, Now: a.now,
	})
}

// step sends one request, or returns when there will be one.
func (a *arm) step() (sent bool, again time.Time) {
	a.t.Helper()
	s := a.state()
	candidates := slices.DeleteFunc(slices.Clone(a.wanted), func(id armid.ID) bool { return a.present[id] || a.unwanted[id] })
	batch, again := s.Batch(candidates, a.limit, a.now)
	if len(batch) == 0 {
		s.Write(&a.status)
		return false, again
	}
	a.check(batch)
	a.requests = append(a.requests, batch)
	if !a.exposed[batch[0]] {
		a.searches++
	}
	var guilty []armid.ID
	for _, id := range batch {
		if a.bad[id] {
			guilty = append(guilty, id)
		}
	}
	if len(guilty) == 0 {
		for _, id := range batch {
			a.present[id] = true
			delete(a.exposed, id)
		}
		s.Accept().Write(&a.status)
		return true, again
	}
	named := guilty[:map[naming]int{none: 0, first: 1, all: len(guilty)}[a.naming]]
	for _, id := range named {
		a.exposed[id] = true
	}
	if len(batch) == 1 {
		a.exposed[batch[0]] = true
	}
	f := quarantine.Failure{Batch: batch, Named: named, Reason: v1.ReasonIdentityRefused, Message: "no", Identities: a.identities, Now: a.now}
	s.Refuse(f, a.rules()).Write(&a.status)
	return true, again
}

// check: one that is known to be bad does not travel with others.
func (a *arm) check(batch []armid.ID) {
	a.t.Helper()
	if len(batch) > a.limit {
		a.t.Fatalf("a request of %d identities", len(batch))
	}
	exposed := 0
	for _, id := range batch {
		if a.present[id] {
			a.t.Fatalf("%s is there, and asked for", id.Name())
		}
		if a.exposed[id] {
			exposed++
		}
	}
	if exposed > 0 && exposed < len(batch) {
		a.t.Fatalf("%d known to be bad travel with %d others", exposed, len(batch)-exposed)
	}
}

// settle steps until nothing is to be done before the next retry of a refused
// one. It lets time pass only where the search waits.
func (a *arm) settle(most int) {
	a.t.Helper()
	for end := a.searches + most; a.searches <= end; {
		sent, again := a.step()
		if sent {
			continue
		}
		if a.status.Isolation == nil {
			return
		}
		a.now = again
	}
	a.t.Fatalf("%d requests, and no end: %+v", len(a.requests), a.status.Isolation)
}

// verify: all good ones are there, and exactly the bad ones are refused.
func (a *arm) verify() {
	a.t.Helper()
	s := a.state()
	for _, id := range a.wanted {
		if a.unwanted[id] {
			continue
		}
		_, refused := s.Refused[id]
		if a.bad[id] == a.present[id] || a.bad[id] != refused || s.Suspect(id) {
			a.t.Fatalf("%s: bad %v, present %v, refused %v, suspect %v", id.Name(), a.bad[id], a.present[id], refused, s.Suspect(id))
		}
	}
}

// bound is how many requests the search may take: for each bad identity one and
// a half for each halving, and a few for the begin and the end.
func bound(n, k, limit int) int {
	return (n+limit-1)/limit + k*(3*bits.Len(uint(min(n, limit)))/2+3)
}

func TestSearchCosts(t *testing.T) {
	ids := many(t, 200)
	for name, test := range map[string]struct {
		naming   naming
		bad      [3]int
		requests int // at most
		burst    int // good ones there after the first 12 requests, at least
	}{
		"all named":                        {all, [3]int{3, 70, 199}, 4, 197},
		"one named at a time":              {first, [3]int{3, 70, 199}, 5, 197},
		"one named at a time, all in one":  {first, [3]int{0, 1, 2}, 5, 197},
		"none named, at the begin":         {none, [3]int{0, 1, 2}, 40, 130},
		"none named, at the end":           {none, [3]int{197, 198, 199}, 40, 130},
		"none named, apart":                {none, [3]int{0, 74, 149}, 40, 130},
		"none named, in different batches": {none, [3]int{10, 100, 180}, 40, 130},
		"none named, in the middle":        {none, [3]int{74, 75, 76}, 40, 130},
	} {
		t.Run(name, func(t *testing.T) {
			a := newARM(t, ids, ids[test.bad[0]], ids[test.bad[1]], ids[test.bad[2]])
			a.naming = test.naming
			for range 12 {
				a.step()
			}
			if len(a.present) < test.burst {
				t.Errorf("%d are there after the burst, want %d", len(a.present), test.burst)
			}
			a.settle(test.requests)
			a.verify()
		})
	}
}

// TestSearchWorst looks for the worst of many choices of three bad ones.
func TestSearchWorst(t *testing.T) {
	ids := many(t, 200)
	random := rand.New(rand.NewPCG(3, 4))
	worst, least := 0, len(ids)
	for range 80 {
		p := random.Perm(len(ids))
		a := newARM(t, ids, ids[p[0]], ids[p[1]], ids[p[2]])
		for range 12 {
			a.step()
		}
		least = min(least, len(a.present))
		a.settle(bound(len(ids), 3, a.limit))
		a.verify()
		worst = max(worst, len(a.requests))
	}
	t.Logf("worst %d requests, %d there after the burst at least", worst, least)
	if worst > 40 {
		t.Errorf("one took %d requests, want 40 at most", worst)
	}
}

// FuzzSearch: any identities are bad, some heal, some are no longer needed and
// needed again, all are edited, while ARM names all, one or none. What is known
// to be bad never travels with others, and in the end all good ones are there.
func FuzzSearch(f *testing.F) {
	f.Add(uint64(1), uint8(40), uint64(0b1011), uint8(0))
	f.Add(uint64(2), uint8(9), uint64(0x1ff), uint8(0))
	f.Add(uint64(3), uint8(33), uint64(1)<<32, uint8(1))
	f.Add(uint64(4), uint8(63), ^uint64(0), uint8(2))
	f.Fuzz(func(t *testing.T, seed uint64, n uint8, bad uint64, said uint8) {
		ids := many(t, int(n%64)+1)
		a := newARM(t, ids)
		a.random, a.naming, a.limit = rand.New(rand.NewPCG(seed, 7)), naming(said%3), 10
		for i, id := range ids {
			a.bad[id] = bad&(1<<i) != 0
		}
		for range 60 {
			a.happen(ids[a.random.IntN(len(ids))])
			a.step()
		}
		for _, id := range ids {
			delete(a.unwanted, id)
		}
		k := 0
		for _, id := range ids {
			if a.bad[id] {
				k++
			}
		}
		a.settle(bound(len(ids), k, a.limit) + len(ids)) // an edit leaves more to look at
		// Those that healed are found when they are tried again.
		a.now = a.now.Add(24 * time.Hour)
		for range 4 * len(ids) {
			if sent, _ := a.step(); !sent {
				break
			}
		}
		a.verify()
	})
}

// happen lets something happen around the search.
func (a *arm) happen(id armid.ID) {
	switch a.random.IntN(8) {
	case 0:
		a.bad[id] = false
	case 1:
		a.unwanted[id] = true
	case 2, 3:
		delete(a.unwanted, id)
	case 4:
		a.edition += "+"
	default:
		a.now = a.now.Add(time.Duration(a.random.IntN(60)) * time.Second)
	}
}

// TestEverythingBad: where the fault is not of a few identities, the requests
// thin out, and the bucket that others share is left to them.
func TestEverythingBad(t *testing.T) {
	ids := many(t, 200)
	a := newARM(t, ids, ids...)
	start := a.now
	var hours []int
	for hour := range 6 {
		before := len(a.requests)
		end := start.Add(time.Duration(hour+1) * time.Hour)
		for a.now.Before(end) {
			sent, again := a.step()
			if sent {
				a.now = a.now.Add(time.Second)
				continue
			}
			a.now = again
		}
		hours = append(hours, len(a.requests)-before)
	}
	for hour, requests := range hours {
		if requests > 130 {
			t.Errorf("%d requests in hour %d: %v", requests, hour, hours)
		}
	}
}

// TestPassingError: what is refused once, for whatever reason, is refused to
// nobody.
func TestPassingError(t *testing.T) {
	ids := many(t, 64)
	a := newARM(t, ids, ids[5])
	a.step()
	a.bad[ids[5]] = false
	a.settle(bound(64, 1, 150))
	a.verify()
	if len(a.status.Refused) > 0 {
		t.Errorf("refused: %v", a.status.Refused)
	}
}
