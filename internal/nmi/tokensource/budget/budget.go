// Package budget shares the few requests that a node may send to one upstream,
// so many a second and so many at once, among the pods that want some.
//
// Pods take turns: one that wants a thousand delays another's first by one. What
// must wait is queued in bounded room, and the longest queue gives way. The
// package must not know what a request asks for or what its answer means, but for
// one thing: an upstream that complains is asked less.
package budget

import (
	"sync"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Options configure a [Budget]. Zero values stand for the defaults, which are
// the documented limits of the metadata service for managed identities.
type Options struct {
	// PerSecond is how many requests may leave in any second; 20.
	PerSecond int
	// AtOnce is how many may be under way; 5.
	AtOnce int
	// Waiting bounds the queue; 1024.
	Waiting int
}

// keep is how long a queued call is kept after somebody last wanted it: long
// enough for a caller that was told to come back.
const keep = 30 * time.Second

// maxAfter bounds how long a caller is told to stay away. Azure's SDK for Go
// gives up when it is told more than 25 seconds.
const maxAfter = 20 * time.Second

// Budget is what one upstream takes from this node. It is safe for concurrent
// use. Use [New], then [Budget.Share].
type Budget struct {
	options Options

	mu      sync.Mutex // protects all following fields, and those of shares and tickets
	pace    pace
	shares  []*Share
	running int
	waiting int
	// passed is the virtual time of the share that was served last.
	passed float64
	// held is how long requests took lately.
	held  time.Duration
	timer *time.Timer
}

// New returns a budget without shares.
func New(o Options) *Budget {
	if o.PerSecond == 0 {
		o.PerSecond = 20
	}
	if o.AtOnce == 0 {
		o.AtOnce = 5
	}
	if o.Waiting == 0 {
		o.Waiting = 1024
	}
	return &Budget{options: o, pace: newPace(o.PerSecond, o.AtOnce)}
}

// Share adds a share. While several want more than there is, they get it in
// proportion to their weights; what one does not want is the others'. atOnce
// bounds what the share has under way; zero is all that the budget allows.
func (b *Budget) Share(weight, atOnce int) *Share {
	if atOnce <= 0 {
		atOnce = b.options.AtOnce
	}
	s := &Share{budget: b, weight: float64(weight), atOnce: atOnce, queues: map[string]*queue{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shares = append(b.shares, s)
	return s
}

// Waiting returns how many calls wait for their turn.
func (b *Budget) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}

// dispatch starts what may start, and sees to it that the rest is looked at
// again. It is called whenever something changed, with the lock held.
func (b *Budget) dispatch() {
	now := time.Now()
	for b.running < b.options.AtOnce {
		share := b.nextShare()
		if share == nil {
			return
		}
		if wait := b.pace.earliest(now).Sub(now); wait > 0 {
			b.lookAgain(wait)
			return
		}
		t := share.first()
		b.settle(t)
		if now.After(t.until) {
			go t.call.Dropped(b.refuse("nobody waits for it any more", 0))
			continue
		}
		t.place = b.pace.leave(now)
		b.passed = share.passed
		share.passed += 1 / share.weight
		b.running++
		share.running++
		t.started = now
		go t.call.Start()
	}
}

// nextShare returns the share whose turn it is, of those that have something to
// start.
func (b *Budget) nextShare() *Share {
	var out *Share
	for _, s := range b.shares {
		if len(s.turns) > 0 && s.running < s.atOnce && (out == nil || s.passed < out.passed) {
			out = s
		}
	}
	return out
}

func (b *Budget) lookAgain(after time.Duration) {
	if b.timer != nil {
		b.timer.Reset(after)
		return
	}
	b.timer = time.AfterFunc(after, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.dispatch()
	})
}

// settle takes a ticket out of every queue.
func (b *Budget) settle(t *Ticket) {
	b.waiting--
	for _, q := range t.queues {
		q.remove(t)
	}
	t.queues = nil
}

// makeRoom takes the last call of the longest queue out for one that is to join
// a queue of mine calls. It reports false if that queue is the longest, or the
// longest holds nothing but what others wait for, too.
func (b *Budget) makeRoom(mine int) bool {
	if b.waiting < b.options.Waiting {
		return true
	}
	var longest *queue
	for _, s := range b.shares {
		for _, q := range s.turns {
			if longest == nil || len(q.tickets) > len(longest.tickets) {
				longest = q
			}
		}
	}
	if longest == nil || mine+1 >= len(longest.tickets) {
		return false
	}
	last := longest.lastAlone()
	if last == nil {
		return false
	}
	after := last.share.estimate(longest, len(longest.tickets))
	b.settle(last)
	go last.call.Dropped(b.refuse("others wait for their first", after))
	return true
}

// refuse words that a call did not get its turn.
func (b *Budget) refuse(why string, after time.Duration) *refusal.Error {
	out := refusal.New(v1.ReasonLimited, "the node may send %d such requests a second, and this one got no turn (%s): try again", b.options.PerSecond, why)
	out.After = min(max(after, time.Second), maxAfter)
	return out
}

// Outcome is what the budget needs to know of an answer.
type Outcome struct {
	// Throttled says that the upstream complained, After how long it asked to
	// wait; zero if it did not say.
	Throttled bool
	After     time.Duration
}

// done gives back what a started call held.
func (b *Budget) done(t *Ticket, outcome Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.running--
	t.share.running--
	b.held += (now.Sub(t.started) - b.held) / 4
	b.pace.answered(t.place, t.started, now)
	if outcome.Throttled {
		b.pace.throttled(now, outcome.After)
	}
	b.dispatch()
}
