package throttle_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
)

// world is a meter on a clock that stands still until it is moved.
type world struct {
	*throttle.Meter
	now time.Time
}

func newWorld() *world {
	w := &world{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.Meter = throttle.New(func() time.Time { return w.now })
	return w
}

func update(every time.Duration) throttle.Bucket {
	return throttle.Bucket{Name: "Update", Key: "vmss", PerMinute: 4, Burst: 12, Every: every}
}

// accepted asks n times for who and counts what is let through.
func (w *world) accepted(who string, n int, b ...throttle.Bucket) int {
	through := 0
	for range n {
		if _, refusal := w.Take(who, b...); refusal == nil {
			through++
		}
	}
	return through
}

// The example of Azure's own documentation: 4 a minute, 12 at most.
func TestBucketOfTheDocumentation(t *testing.T) {
	w := newWorld()
	for minute, test := range []struct{ asked, accepted int }{{0, 0}, {8, 8}, {0, 0}, {13, 12}, {5, 4}, {0, 0}, {9, 8}} {
		if minute > 0 {
			w.now = w.now.Add(time.Minute)
		} else {
			w.Drain("nobody", 0, update(time.Minute)) // the bucket exists from now on
		}
		if got := w.accepted("mic", test.asked, update(time.Minute)); got != test.accepted {
			t.Errorf("minute %d: %d of %d were accepted, want %d", minute+1, got, test.asked, test.accepted)
		}
	}
}

func TestTokensComeAllAtOnceOrOneByOne(t *testing.T) {
	for name, test := range map[string]struct {
		every time.Duration
		after time.Duration
		early int // accepted 20 s after the bucket was emptied
	}{
		"each minute": {time.Minute, time.Minute, 0},
		"one by one":  {0, 15 * time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.accepted("mic", 12, update(test.every))
			if _, refusal := w.Take("mic", update(test.every)); refusal == nil || refusal.After != test.after {
				t.Errorf("got %+v, want a wait of %s", refusal, test.after)
			}
			w.now = w.now.Add(20 * time.Second)
			if got := w.accepted("mic", 3, update(test.every)); got != test.early {
				t.Errorf("after 20 s %d were accepted, want %d", got, test.early)
			}
			w.now = w.now.Add(40 * time.Second)
			if got := w.accepted("mic", 9, update(test.every)); got != 4-test.early {
				t.Errorf("after a minute %d more were accepted, want %d", got, 4-test.early)
			}
		})
	}
}

func TestRefusalTakesNothing(t *testing.T) {
	w := newWorld()
	resource, subscription := update(0), throttle.Bucket{Name: "Subscription", Key: "s", PerMinute: 500, Burst: 1500}
	w.accepted("mic", 12, resource)
	left, refusal := w.Take("mic", subscription, resource)
	if refusal == nil || refusal.Bucket != "Update" {
		t.Fatalf("got %+v, want a refusal of Update", refusal)
	}
	if diff := cmp.Diff([]throttle.Left{{"Subscription", 1500}, {"Update", 0}}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestKeysAreCountedApartAndUnlimitedIsNotCounted(t *testing.T) {
	w := newWorld()
	w.accepted("mic", 12, update(0))
	other := update(0)
	other.Key = "another"
	if left, refusal := w.Take("mic", other, throttle.Bucket{Name: "Off"}); refusal != nil || len(left) != 1 || left[0].Tokens != 11 {
		t.Errorf("got %+v, %+v", left, refusal)
	}
}

func TestRefusalSaysWhoseDoingItWas(t *testing.T) {
	b := update(0)
	for name, test := range map[string]struct {
		before func(*world)
		want   throttle.Refusal
	}{
		"its own": {
			func(w *world) { w.accepted("mic", 12, b) },
			throttle.Refusal{Bucket: "Update", After: 15 * time.Second},
		},
		"another's": {
			func(w *world) { w.Drain("other", 100, b) },
			throttle.Refusal{Bucket: "Update", After: 15 * time.Second, Foreign: true},
		},
		"another's, although it asked too": {
			func(w *world) { w.accepted("mic", 11, b); w.accepted("other", 1, b) },
			throttle.Refusal{Bucket: "Update", After: 15 * time.Second, Foreign: true},
		},
		"another's, but it did not wait": {
			func(w *world) { w.Drain("other", 100, b); w.accepted("mic", 1, b); w.now = w.now.Add(5 * time.Second) },
			throttle.Refusal{Bucket: "Update", After: 10 * time.Second, Foreign: true, Early: true},
		},
		"another's, and it could not know yet": {
			func(w *world) {
				w.Drain("other", 100, b)
				w.accepted("mic", 1, b)
				w.now = w.now.Add(500 * time.Millisecond)
			},
			throttle.Refusal{Bucket: "Update", After: 14500 * time.Millisecond, Foreign: true},
		},
		"another's, and it asks again and again": {
			func(w *world) {
				w.Drain("other", 100, b)
				for range 3 {
					w.accepted("mic", 1, b)
					w.now = w.now.Add(400 * time.Millisecond)
				}
			},
			throttle.Refusal{Bucket: "Update", After: 13800 * time.Millisecond, Foreign: true, Early: true},
		},
		"another's again, after it waited": {
			func(w *world) {
				w.Drain("other", 100, b)
				w.accepted("mic", 1, b)
				w.now = w.now.Add(15 * time.Second)
				w.Drain("other", 100, b)
			},
			throttle.Refusal{Bucket: "Update", After: 15 * time.Second, Foreign: true},
		},
		"its own in full, beside another's": {
			func(w *world) { w.accepted("mic", 12, b); w.Drain("other", 100, b) },
			throttle.Refusal{Bucket: "Update", After: 15 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			test.before(w)
			_, refusal := w.Take("mic", b)
			if refusal == nil {
				t.Fatal("it was accepted")
			}
			if diff := cmp.Diff(test.want, *refusal); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDrainTakesWhatIsThere(t *testing.T) {
	w := newWorld()
	left := w.Drain("other", 5, update(0), throttle.Bucket{Name: "Off"}, throttle.Bucket{Name: "Small", Key: "k", PerMinute: 1, Burst: 3})
	if diff := cmp.Diff([]throttle.Left{{"Update", 7}, {"Small", 0}}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	w.Reset()
	if got := w.accepted("mic", 20, update(0)); got != 12 {
		t.Errorf("after a reset %d were accepted, want 12", got)
	}
}

// Whoever comes back when it is told finds a token, unless others took it; and in
// no window is more let through than the burst and what came in it.
func TestWaitingAsToldIsEnough(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		every := time.Duration(random.Int64N(2)) * time.Minute
		b := throttle.Bucket{Name: "b", Key: "k", PerMinute: 1 + 10*random.Float64(), Burst: 1 + random.IntN(20), Every: every}
		w := newWorld()
		start, through := w.now, 0
		for range 300 {
			_, refusal := w.Take("mic", b)
			if refusal == nil {
				through++
				w.now = w.now.Add(time.Duration(random.Int64N(int64(10 * time.Second))))
				continue
			}
			if refusal.Foreign || refusal.Early {
				t.Fatalf("seed %d: %+v, and nobody else asked", seed, refusal)
			}
			w.now = w.now.Add(refusal.After)
			if _, again := w.Take("mic", b); again != nil {
				t.Fatalf("seed %d: refused after the wait of %s: %+v", seed, refusal.After, again)
			}
			through++
			if most := float64(b.Burst) + w.now.Sub(start).Minutes()*b.PerMinute + 1e-6; float64(through) > most {
				t.Fatalf("seed %d: %d came through, at most %f may", seed, through, most)
			}
		}
	}
}
