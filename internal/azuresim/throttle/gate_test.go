package throttle_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
)

func newGate() (*throttle.Gate, *time.Time) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return throttle.NewGate(func() time.Time { return now }), &now
}

func TestGateLetsInSoManyInAnyWindow(t *testing.T) {
	g, now := newGate()
	w := throttle.Width{Most: 20, Window: time.Second}
	let := func(n int) int {
		in := 0
		for range n {
			if _, refused := g.Enter("node", w); refused == "" {
				in++
				g.Leave("node")
			} else if refused != throttle.RateLimit {
				t.Fatalf("refused for %s", refused)
			}
		}
		return in
	}
	for _, step := range []struct {
		after time.Duration
		asked int
		want  int
	}{{0, 15, 15}, {900 * time.Millisecond, 10, 5}, {99 * time.Millisecond, 5, 0}, {time.Millisecond, 20, 15}, {899 * time.Millisecond, 1, 0}, {time.Millisecond, 9, 5}} {
		*now = now.Add(step.after)
		if got := let(step.asked); got != step.want {
			t.Errorf("%s later %d of %d were let in, want %d", step.after, got, step.asked, step.want)
		}
	}
}

func TestGateLetsInSoManyAtOnce(t *testing.T) {
	g, _ := newGate()
	w := throttle.Width{Together: 5, Window: time.Second}
	for i := range 5 {
		if inside, refused := g.Enter("node", w); refused != "" || inside != i+1 {
			t.Fatalf("request %d: %d inside, %q", i+1, inside, refused)
		}
	}
	if _, refused := g.Enter("node", w); refused != throttle.ConcurrentLimit {
		t.Errorf("a sixth one: %q", refused)
	}
	if inside, refused := g.Enter("another", w); refused != "" || inside != 1 {
		t.Errorf("another node: %d inside, %q", inside, refused)
	}
	g.Leave("node")
	if _, refused := g.Enter("node", w); refused != "" {
		t.Errorf("after one left: %q", refused)
	}
}

func TestGateWithoutLimitsCounts(t *testing.T) {
	g, _ := newGate()
	for i := range 1000 {
		if inside, refused := g.Enter("node", throttle.Width{}); refused != "" || inside != i+1 {
			t.Fatalf("request %d: %d inside, %q", i+1, inside, refused)
		}
	}
}

// Whatever comes when, no window holds more than it may.
func TestNoWindowHoldsMoreThanItMay(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 2))
		g, now := newGate()
		w := throttle.Width{Most: 1 + random.IntN(10), Window: time.Second}
		var in []time.Time
		for range 500 {
			*now = now.Add(time.Duration(random.Int64N(int64(200 * time.Millisecond))))
			if _, refused := g.Enter("node", w); refused == "" {
				in = append(in, *now)
				g.Leave("node")
			}
		}
		for i := w.Most; i < len(in); i++ {
			if in[i].Sub(in[i-w.Most]) < w.Window {
				t.Fatalf("seed %d: %d within %s", seed, w.Most+1, in[i].Sub(in[i-w.Most]))
			}
		}
	}
}
