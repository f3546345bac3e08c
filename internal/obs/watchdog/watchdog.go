// Package watchdog knows what is being worked on, and since when, so that a
// worker that hangs is noticed and the process started anew.
//
// It must not end what hangs, nor know why: bounds are those of the work itself,
// far above its longest legitimate step.
package watchdog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Watchdog watches pieces of work. The nil Watchdog watches nothing. It is safe
// for concurrent use.
type Watchdog struct {
	clock clock.PassiveClock
	ended func(worker string, took time.Duration)

	mu      sync.Mutex // protects all following fields, and those of each piece
	running map[*piece]struct{}
}

// piece is one piece of work under way.
type piece struct {
	worker, key string
	bound       time.Duration
	since, step time.Time // its beginning, and that of its current step
}

// New returns a Watchdog. ended, if set, is told how long every piece of work
// took.
func New(clock clock.PassiveClock, ended func(worker string, took time.Duration)) *Watchdog {
	return &Watchdog{clock: clock, ended: ended, running: map[*piece]struct{}{}}
}

// Stuck is a step that has taken longer than its bound.
type Stuck struct {
	// Worker is what kind of work it is, Key what is worked on.
	Worker, Key string
	For, Bound  time.Duration
}

// String says it in words.
func (s Stuck) String() string {
	return fmt.Sprintf("%s of %s has made no step for %s, which is longer than %s", s.Worker, s.Key, s.For.Round(time.Second), s.Bound)
}

// Check returns an error that names everything that is stuck, or nil.
func (w *Watchdog) Check() error {
	var lines []string
	for _, s := range w.Stuck() {
		lines = append(lines, s.String())
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("stuck: %s", strings.Join(lines, "; "))
}

// Stuck returns what is stuck, the longest first.
func (w *Watchdog) Stuck() []Stuck {
	if w == nil {
		return nil
	}
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Stuck
	for p := range w.running {
		if took := now.Sub(p.step); took > p.bound {
			out = append(out, Stuck{Worker: p.worker, Key: p.key, For: took, Bound: p.bound})
		}
	}
	slices.SortFunc(out, func(a, b Stuck) int {
		return cmp.Or(cmp.Compare(b.For, a.For), cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Key, b.Key))
	})
	return out
}

// Longest returns for how long the oldest piece of work runs; 0 if none does.
func (w *Watchdog) Longest() time.Duration {
	if w == nil {
		return 0
	}
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	var longest time.Duration
	for p := range w.running {
		longest = max(longest, now.Sub(p.since))
	}
	return longest
}

// Begin watches a piece of work until end is called. No step of it, and nothing
// of it if [Step] is not called with the context, may take longer than bound.
func (w *Watchdog) Begin(ctx context.Context, worker, key string, bound time.Duration) (steps context.Context, end func()) {
	if w == nil {
		return ctx, func() {}
	}
	now := w.clock.Now()
	p := &piece{worker: worker, key: key, bound: bound, since: now, step: now}
	w.mu.Lock()
	w.running[p] = struct{}{}
	w.mu.Unlock()
	return context.WithValue(ctx, stepKey{}, func() { w.step(p) }), func() { w.end(p) }
}

func (w *Watchdog) step(p *piece) {
	now := w.clock.Now()
	w.mu.Lock()
	p.step = now
	w.mu.Unlock()
}

func (w *Watchdog) end(p *piece) {
	now := w.clock.Now()
	w.mu.Lock()
	delete(w.running, p)
	w.mu.Unlock()
	if w.ended != nil {
		w.ended(p.worker, now.Sub(p.since))
	}
}

type stepKey struct{}

// Step says that the work whose context this is goes on: its next step begins.
func Step(ctx context.Context) {
	if step, ok := ctx.Value(stepKey{}).(func()); ok {
		step()
	}
}

// Watch returns a reconciler whose every run is watched.
func Watch[R comparable](w *Watchdog, worker string, bound time.Duration, r reconcile.TypedReconciler[R]) reconcile.TypedReconciler[R] {
	if w == nil {
		return r
	}
	return reconcile.TypedFunc[R](func(ctx context.Context, request R) (reconcile.Result, error) {
		ctx, end := w.Begin(ctx, worker, fmt.Sprint(request), bound)
		defer end() // after a panic, too
		return r.Reconcile(ctx, request)
	})
}
