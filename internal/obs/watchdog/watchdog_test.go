package watchdog_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

func TestStuck(t *testing.T) {
	now := testingclock.NewFakePassiveClock(time.Unix(0, 0))
	ended := map[string]time.Duration{}
	w := watchdog.New(now, func(worker string, took time.Duration) { ended[worker] = took })
	wait := func(d time.Duration) { now.SetTime(now.Now().Add(d)) }
	if w.Check() != nil || w.Longest() != 0 {
		t.Error("nothing runs")
	}
	_, endShort := w.Begin(t.Context(), "short", "a", time.Minute)
	steps, endLong := w.Begin(t.Context(), "long", "b", time.Hour)
	wait(time.Minute)
	if err := w.Check(); err != nil {
		t.Errorf("at its bound: %v", err)
	}
	wait(time.Second)
	want := []watchdog.Stuck{{Worker: "short", Key: "a", For: 61 * time.Second, Bound: time.Minute}}
	if diff := cmp.Diff(want, w.Stuck()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := w.Check(); err == nil || err.Error() != "stuck: short of a has made no step for 1m1s, which is longer than 1m0s" {
		t.Errorf("got %v", err)
	}
	endShort()
	wait(50 * time.Minute)
	watchdog.Step(steps)
	wait(time.Hour)
	if err := w.Check(); err != nil {
		t.Errorf("a step began an hour ago: %v", err)
	}
	if got := w.Longest(); got != 111*time.Minute+time.Second {
		t.Errorf("the longest runs for %s", got)
	}
	wait(time.Second)
	if w.Check() == nil {
		t.Error("longer than its bound")
	}
	endLong()
	if w.Check() != nil || w.Longest() != 0 {
		t.Error("all ended")
	}
	if diff := cmp.Diff(map[string]time.Duration{"short": 61 * time.Second, "long": 111*time.Minute + 2*time.Second}, ended); diff != "" {
		t.Errorf("took (-want +got):\n%s", diff)
	}
}

// TestOrder: what hangs longest is named first.
func TestOrder(t *testing.T) {
	now := testingclock.NewFakePassiveClock(time.Unix(0, 0))
	w := watchdog.New(now, nil)
	for i, key := range []string{"c", "b", "a"} {
		now.SetTime(time.Unix(int64(i/2), 0))
		w.Begin(t.Context(), "x", key, time.Second)
	}
	now.SetTime(time.Unix(60, 0))
	var got []string
	for _, s := range w.Stuck() {
		got = append(got, s.Key)
	}
	if diff := cmp.Diff([]string{"b", "c", "a"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestWatch: a reconciler that hangs is seen, one that fails or panics is over.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watchdog.New(clock.RealClock{}, nil)
		release := make(chan struct{})
		r := watchdog.Watch(w, "x", time.Minute, reconcile.TypedFunc[int](func(ctx context.Context, key int) (reconcile.Result, error) {
			switch key {
			case 1:
				return reconcile.Result{}, errors.New("no")
			case 2:
				panic("oh")
			}
			time.Sleep(50 * time.Second) //nolint:forbidigo // in a bubble of synctest
			watchdog.Step(ctx)
			<-release
			return reconcile.Result{RequeueAfter: 1}, nil
		}))
		var running sync.WaitGroup
		running.Go(func() {
			if got, err := r.Reconcile(t.Context(), 7); err != nil || got.RequeueAfter != 1 {
				t.Errorf("got %v, %v", got, err)
			}
		})
		time.Sleep(100 * time.Second) //nolint:forbidigo // in a bubble of synctest
		if err := w.Check(); err != nil {
			t.Error(err)
		}
		time.Sleep(11 * time.Second) //nolint:forbidigo // in a bubble of synctest
		if got := w.Stuck(); len(got) != 1 || got[0].Key != "7" {
			t.Errorf("got %v", got)
		}
		if _, err := r.Reconcile(t.Context(), 1); err == nil {
			t.Error("no error")
		}
		func() {
			defer func() { _ = recover() }()
			_, _ = r.Reconcile(t.Context(), 2)
		}()
		close(release)
		running.Wait()
		if w.Longest() != 0 {
			t.Error("something still runs")
		}
	})
}

func TestNone(t *testing.T) {
	var w *watchdog.Watchdog
	ctx, end := w.Begin(t.Context(), "x", "y", 0)
	watchdog.Step(ctx)
	end()
	r := watchdog.Watch(w, "x", 0, reconcile.TypedFunc[int](func(context.Context, int) (reconcile.Result, error) { return reconcile.Result{}, nil }))
	if _, err := r.Reconcile(t.Context(), 1); err != nil || w.Check() != nil || w.Longest() != 0 {
		t.Error("nothing is watched")
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	w := watchdog.New(clock.RealClock{}, func(string, time.Duration) {})
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			for j := range 100 {
				ctx, end := w.Begin(t.Context(), "x", fmt.Sprint(i, j), time.Hour)
				watchdog.Step(ctx)
				w.Stuck()
				w.Longest()
				end()
			}
		})
	}
	running.Wait()
}
