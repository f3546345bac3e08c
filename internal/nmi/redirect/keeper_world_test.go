package redirect_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/keeper"
)

// kept is a running keeper whose interval never comes, so that what it does it
// does for an event.
type kept struct {
	w       *world
	changes chan redirect.Change
	stop    func() // ends the keeper and waits for it
}

// keep runs a keeper for the node until the test ends. It returns when the
// rules are in place and the watch listens.
func (w *world) keep(d *redirect.NFTables) *kept {
	w.Helper()
	k := &kept{w: w, changes: make(chan redirect.Change, 100)}
	ctx, cancel := context.WithCancel(w.Context())
	ended, ready := make(chan struct{}), make(chan struct{})
	listening := make(chan struct{}, 100)
	go func() {
		defer close(ended)
		err := keeper.Run(ctx, keeper.Options{
			Datapath: d,
			Watcher:  announced{d, listening},
			Interval: time.Hour,
			Ready:    func() { close(ready) },
			Changed:  func(c redirect.Change) { k.changes <- c },
			Failed: func(err error) {
				if !errors.Is(err, redirect.ErrHeld) { // which the test knows
					w.Errorf("keeping: %v", err)
				}
			},
		})
		if err != nil {
			w.Errorf("running the keeper: %v", err)
		}
	}()
	k.stop = func() { cancel(); <-ended }
	w.Cleanup(k.stop)
	<-ready
	<-listening
	return k
}

// announced is a watcher that says when it has reported something.
type announced struct {
	keeper.Watcher
	reports chan<- struct{}
}

func (a announced) Watch(ctx context.Context, changed func()) error {
	return a.Watcher.Watch(ctx, func() {
		changed()
		select {
		case a.reports <- struct{}{}:
		default:
		}
	})
}

// next waits for a change that satisfies f.
func (k *kept) next(what string, f func(redirect.Change) bool) redirect.Change {
	k.w.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case c := <-k.changes:
			if f(c) {
				return c
			}
		case <-timeout:
			k.w.Fatalf("waited in vain for %s", what)
		}
	}
}

// repaired waits until the rules were replaced.
func (k *kept) repaired() redirect.Change {
	k.w.Helper()
	return k.next("a repair", func(c redirect.Change) bool { return c.Rules })
}

func TestKeeperRepairsOnEvents(t *testing.T) {
	eachDamage(t, func(w *world, do func(), _ string) {
		d := w.datapath()
		k := w.keep(d)
		w.serve(w.node, w.target, "nmi")
		for range 2 { // also after a repair of its own
			do()
			k.repaired()
			w.must(d.Verify(w.Context()))
			w.hears(w.pod, metadata, "nmi hears "+podIP)
		}
		w.noLeaks()
	})
}

func TestKeeperTakesNewLinks(t *testing.T) {
	w := newNode(t)
	k := w.keep(w.datapath())
	w.serve(w.node, w.target, "nmi")
	for name, ip := range map[string]string{"late": "10.244.1.2", "later": "10.244.2.2"} {
		pod := w.addPod(name, ip)
		k.next("a new link", func(c redirect.Change) bool { return c.Links > 0 && !c.Rules })
		w.hears(pod, metadata, "nmi hears "+ip)
	}
	w.noLeaks()
}

func TestRulesStayWhenTheKeeperEnds(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := w.datapath()
		k := w.keep(d)
		nmi := w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
		k.stop()
		nmi.Close()
		w.must(d.Verify(w.Context()))
		w.refused(w.pod, metadata)
		w.noLeaks()
		w.keep(d)
		w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
	})
}
