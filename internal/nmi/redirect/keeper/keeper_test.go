package keeper_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/keeper"
)

// fake is a datapath whose Ensure is given; nothing else may be called.
type fake struct {
	redirect.Datapath
	ensure func(pass int) (redirect.Change, error)
	passes atomic.Int32
}

func (f *fake) Ensure(context.Context) (redirect.Change, error) {
	return f.ensure(int(f.passes.Add(1)))
}

// watchFunc is a watcher.
type watchFunc func(ctx context.Context, changed func()) error

func (f watchFunc) Watch(ctx context.Context, changed func()) error { return f(ctx, changed) }

// log is what a keeper has told, and when, since it was started.
type log struct {
	start time.Time
	lines []string
}

func (l *log) add(line string) { l.lines = append(l.lines, time.Since(l.start).String()+" "+line) }

// history runs a keeper for so long in a bubble and returns what it told. The
// options given are completed with callbacks.
func history(t *testing.T, howLong time.Duration, options keeper.Options) ([]string, error) {
	t.Helper()
	l := &log{start: time.Now()}
	options.Ready = func() { l.add("ready") }
	options.Changed = func(c redirect.Change) { l.add("changed: " + c.Reason) }
	options.Failed = func(err error) { l.add("failed: " + err.Error()) }
	ctx, cancel := context.WithTimeout(t.Context(), howLong)
	defer cancel()
	err := keeper.Run(ctx, options)
	return l.lines, err
}

// run is what a datapath and a watcher do, and what the keeper tells of it
// within 190 s.
type run struct {
	ensure  func(pass int) (redirect.Change, error)
	watcher keeper.Watcher
	want    []string
	passes  int32 // 0: not determined
}

func (r run) test(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{ensure: r.ensure}
		got, err := history(t, 190*time.Second, keeper.Options{Datapath: f, Watcher: r.watcher})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r.want, got); diff != "" {
			t.Error(diff)
		}
		if n := f.passes.Load(); r.passes != 0 && n != r.passes {
			t.Errorf("%d passes, want %d", n, r.passes)
		}
	})
}

func nothing(int) (redirect.Change, error) { return redirect.Change{}, nil }

func repair() redirect.Change { return redirect.Change{Rules: true, Reason: "damage"} }

func TestRunOnTheInterval(t *testing.T) {
	for name, test := range map[string]run{
		"what the first pass does is no repair": {
			ensure: func(pass int) (redirect.Change, error) {
				return redirect.Change{Rules: pass == 1, Reason: "missing"}, nil
			},
			want: []string{"0s ready"}, passes: 4,
		},
		"repairs are found on the interval": {
			ensure: func(pass int) (redirect.Change, error) {
				if pass == 3 {
					return repair(), nil
				}
				return nothing(pass)
			},
			want: []string{"0s ready", "2m0s changed: damage"}, passes: 4,
		},
		"a failure is tried again soon": {
			ensure: func(pass int) (redirect.Change, error) {
				if pass == 2 || pass == 3 {
					return redirect.Change{}, errors.New("no luck")
				}
				return nothing(pass)
			},
			want: []string{"0s ready", "1m0s failed: no luck", "1m1s failed: no luck"}, passes: 6,
		},
		"a change before a failure is told": {
			ensure: func(pass int) (redirect.Change, error) {
				if pass == 2 {
					return repair(), errors.New("no luck")
				}
				return nothing(pass)
			},
			want: []string{"0s ready", "1m0s changed: damage", "1m0s failed: no luck"}, passes: 5,
		},
	} {
		t.Run(name, test.test)
	}
}

func TestRunOnEvents(t *testing.T) {
	for name, test := range map[string]run{
		"the beginning of a watch is looked at": {
			ensure: nothing, watcher: watchFunc(func(ctx context.Context, changed func()) error {
				changed()
				<-ctx.Done()
				return ctx.Err()
			}),
			want: []string{"0s ready"}, passes: 5,
		},
		"events are looked at, many at a time as one": {
			ensure: func(pass int) (redirect.Change, error) {
				if pass == 2 {
					return repair(), nil
				}
				return nothing(pass)
			},
			watcher: watchFunc(func(ctx context.Context, changed func()) error {
				<-time.After(30 * time.Second)
				for range 1000 {
					changed()
				}
				<-ctx.Done()
				return ctx.Err()
			}),
			want: []string{"0s ready", "30s changed: damage"}, passes: 0, // how many is the scheduler's choice
		},
		"a watch that ends begins again": {
			ensure: nothing,
			watcher: watchFunc(func(context.Context, func()) error {
				<-time.After(100 * time.Second)
				return errors.New("gone deaf")
			}),
			want: []string{
				"0s ready", "1m40s failed: watching for changes, will begin again: gone deaf",
			}, passes: 4,
		},
	} {
		t.Run(name, test.test)
	}
}

func TestRunFailsIfItCannotBegin(t *testing.T) {
	broken := errors.New("broken")
	f := &fake{ensure: func(int) (redirect.Change, error) { return redirect.Change{}, broken }}
	got, err := history(t, time.Minute, keeper.Options{Datapath: f})
	if !errors.Is(err, broken) || len(got) != 0 {
		t.Errorf("got %v after %q, want %v", err, got, broken)
	}
}

func TestRunRefusesOptions(t *testing.T) {
	for words, options := range map[string]keeper.Options{
		"no datapath":          {},
		"must not be negative": {Datapath: &fake{}, Interval: -time.Second},
		"retry -1s":            {Datapath: &fake{}, Retry: -time.Second},
	} {
		if err := keeper.Run(t.Context(), options); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want words: %s", err, words)
		}
	}
}
