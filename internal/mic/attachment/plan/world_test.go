package plan_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
)

// FuzzCompute lets a controller meet any state, crash at any moment, and checks
// what must hold: it never detaches what it did not attach, nor what a pod needs
// and can use, and it ends with all that is wanted and nothing left behind.
func FuzzCompute(f *testing.F) {
	f.Add(uint64(1), uint8(0b0011), uint8(0b0101), uint8(0b1000), uint8(0), uint8(0))
	f.Add(uint64(7), uint8(0), uint8(0xff), uint8(0), uint8(0b0101), uint8(0))
	f.Add(uint64(9), uint8(0b1), uint8(0xff), uint8(0x0f), uint8(0b1000), uint8(0b0110))
	f.Fuzz(func(t *testing.T, seed uint64, present, first, second, bad, again uint8) {
		world := newWorld(t, seed, pick(present))
		for _, id := range ids(t, pick(bad&^present)) {
			world.bad[id] = true
		}
		world.settle(pick(first))
		world.recreate(pick(again))
		world.settle(pick(second))
		clear(world.bad)
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

// world is a scale set, with a controller that may crash.
type world struct {
	t       *testing.T
	random  *rand.Rand
	state   compute.Identities
	foreign []armid.ID
	bad     map[armid.ID]bool // ARM refuses them, and does not say which
	named   map[armid.ID]plan.Naming
	version int
	now     time.Time

	records []v1.OwnedIdentity
	status  v1.AzureIdentityAttachmentStatus
	unsure  map[armid.ID][]string
}

func newWorld(t *testing.T, seed uint64, foreign string) *world {
	t.Helper()
	return &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), state: seen(t, foreign, false), foreign: ids(t, foreign),
		bad: map[armid.ID]bool{}, named: naming(t), now: time.Unix(1e9, 0),
	}
}

// recreate deletes identities and makes them again. Half of their owners write
// the new client ID into the AzureIdentity.
func (w *world) recreate(names string) {
	for _, id := range ids(w.t, names) {
		if !w.state.Has(id) {
			continue
		}
		w.state.Present[id] = ""
		if w.random.IntN(2) == 0 {
			w.named[id] = plan.Naming{Objects: []string{"u@2"}, ClientIDs: []string{clientOf(id.Name()) + "-new"}}
		}
	}
}

func (w *world) snapshot(wanted string) plan.Snapshot {
	want := ids(w.t, wanted)
	w.random.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
	return plan.Snapshot{
		Seen: w.state, Wanted: want, Named: w.named, Records: w.records,
		Quarantine: quarantine.Parse(w.status), Unconfirmed: w.unsure, Now: w.now,
	}
}

// settle plays the controller until it has nothing to do for what is wanted.
func (w *world) settle(wanted string) {
	w.t.Helper()
	for range 300 {
		w.now = w.now.Add(time.Minute)
		if w.step(wanted) {
			w.verify(wanted)
			return
		}
	}
	w.t.Fatal("does not come to an end")
}

// verify: all that is wanted and good is there, and can be used unless it is
// somebody else's.
func (w *world) verify(wanted string) {
	w.t.Helper()
	for _, id := range ids(w.t, wanted) {
		switch shown, there := w.state.Present[id]; {
		case there == w.bad[id]:
			w.t.Fatalf("%s is wanted: there %v, bad %v", id, there, w.bad[id])
		case there && shown == "" && !slices.Contains(w.foreign, id):
			w.t.Fatalf("%s has no principal, and was not attached anew", id)
		}
	}
}

// step is one pass: it may stop before the record, before the patch, after the
// patch, or not at all.
func (w *world) step(wanted string) (done bool) {
	w.t.Helper()
	p := plan.Compute(w.snapshot(wanted), plan.Policy{Limit: 3})
	if p.Patch == nil {
		p.Quarantine.Write(&w.status)
		w.records, w.unsure = p.Records, p.Unconfirmed
		if p.Again.After(w.now) {
			w.now = p.Again
		}
		searching := len(p.Quarantine.Groups)+len(p.Quarantine.Unsure) > 0
		return p.Again.IsZero() || len(w.bad) > 0 && !searching
	}
	crash := w.random.IntN(5)
	if crash == 0 {
		return false
	}
	w.records = p.Before
	if crash == 1 {
		return false
	}
	if slices.ContainsFunc(p.Patch.Add, func(id armid.ID) bool { return w.bad[id] }) {
		w.refuse(p, crash == 2)
		return false
	}
	w.carryOut(p, wanted)
	if crash == 2 {
		return false
	}
	p.Quarantine.Accept().Write(&w.status)
	w.records, w.unsure = p.After, p.UnconfirmedAfter
	return false
}

func (w *world) refuse(p plan.Plan, crash bool) {
	if crash {
		return
	}
	w.records = p.Undo()
	p.Quarantine.Refuse(quarantine.Failure{
		Batch: p.Patch.Add, Now: w.now, Identities: func(id armid.ID) []string { return w.named[id].Objects },
	}, quarantine.Rules{Min: 10 * time.Minute, Max: time.Hour, Random: w.random.Float64}).Write(&w.status)
}

// carryOut is ARM's part: it shows a client ID for what it attaches.
func (w *world) carryOut(p plan.Plan, wanted string) {
	w.t.Helper()
	for _, id := range p.Patch.Remove {
		usable := slices.Contains(w.named[id].ClientIDs, w.state.Present[id])
		if slices.Contains(ids(w.t, wanted), id) && usable {
			w.t.Fatalf("%s is detached although a pod uses it", id)
		}
	}
	w.state = w.state.Apply(p.Patch)
	for _, id := range p.Patch.Add {
		w.state.Present[id] = w.named[id].ClientIDs[0]
	}
	w.version++
	w.state.ETag = string(rune('A' + w.version))
}
