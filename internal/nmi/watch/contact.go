package watch

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// contact is when the API server last said what is there of one kind.
//
// That it accepts connections says nothing, and that no watch has failed says
// nothing either: while it refuses connections the reflector tries again without
// a word, and a network that swallows packets ends no watch for a while. What
// counts is a list that came, an event, or a bookmark, of which a quiet watch has
// one every minute or two.
type contact struct {
	now  func() time.Time
	last atomic.Int64 // of Unix nanoseconds; 0 is never
}

func (c *contact) made() { c.last.Store(c.now().UnixNano()) }

// age returns for how long the API server has said nothing; false if it never has
// said anything.
func (c *contact) age(now time.Time) (time.Duration, bool) {
	last := c.last.Load()
	return now.Sub(time.Unix(0, last)), last != 0
}

// listen returns the lister with its answers noticed.
func (c *contact) listen(inner *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		DisableChunking: inner.DisableChunking,
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := inner.ListWithContext(ctx, options)
			if err == nil && whole(list) {
				c.made()
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			events, err := inner.WatchWithContext(ctx, options)
			if err != nil {
				return nil, err
			}
			return c.hear(events, options), nil
		},
	}
}

// whole reports whether a list is no page of which others follow.
func whole(list runtime.Object) bool {
	accessor, err := apimeta.ListAccessor(list)
	return err == nil && accessor.GetContinue() == ""
}

// heard is a watch whose events are noticed on their way. The Filter of the
// package watch would do, but for its goroutine that stays for ever if nobody
// takes the last event.
type heard struct {
	events watch.Interface
	out    chan watch.Event
	done   chan struct{}
	stop   func()
}

var _ watch.Interface = (*heard)(nil)

func (c *contact) hear(events watch.Interface, options metav1.ListOptions) *heard {
	h := &heard{events: events, out: make(chan watch.Event), done: make(chan struct{})}
	h.stop = sync.OnceFunc(func() { close(h.done); events.Stop() })
	// A watch that begins with all that is there changes nothing in the store
	// before its first bookmark.
	counts := options.SendInitialEvents == nil || !*options.SendInitialEvents
	go func() {
		defer close(h.out)
		for event := range events.ResultChan() {
			if counts = counts || event.Type == watch.Bookmark; counts && event.Type != watch.Error {
				c.made()
			}
			select {
			case h.out <- event:
			case <-h.done:
				return
			}
		}
	}()
	return h
}

// Stop ends the watch.
func (h *heard) Stop() { h.stop() }

// ResultChan returns the events; it is closed at the end.
func (h *heard) ResultChan() <-chan watch.Event { return h.out }

// Stale returns the kinds of which the API server has said nothing for longer than
// [Options.MaxStaleness], by their plural names, sorted; none if that is 0. Kinds
// that were never seen are [Store.Unsynced].
func (s *Store) Stale() []string {
	if s.maxStaleness == 0 {
		return nil
	}
	var out []string
	now := s.now()
	for plural, contact := range s.contacts {
		if age, ever := contact.age(now); ever && age > s.maxStaleness {
			out = append(out, plural)
		}
	}
	slices.Sort(out)
	return out
}

// Ages returns for how long the API server has said nothing of each kind, by its
// plural name; kinds of which it never has are left out.
func (s *Store) Ages() map[string]time.Duration {
	out, now := map[string]time.Duration{}, s.now()
	for plural, contact := range s.contacts {
		if age, ever := contact.age(now); ever {
			out[plural] = age
		}
	}
	return out
}
