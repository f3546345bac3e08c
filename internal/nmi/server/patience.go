package server

import (
	"context"
	"sync"
	"time"
)

// patience is a context that ends at a time, if not before. It has no timer until
// somebody waits for its end: most requests are answered without waiting, and a
// timer for each would be the most expensive part of many.
type patience struct {
	context.Context
	until time.Time

	mu     sync.Mutex // protects all following fields
	timed  context.Context
	cancel context.CancelFunc
	ended  bool
}

// Deadline returns the time.
func (p *patience) Deadline() (time.Time, bool) {
	if earlier, ok := p.Context.Deadline(); ok && earlier.Before(p.until) {
		return earlier, true
	}
	return p.until, true
}

// Done returns a channel that is closed at the end.
func (p *patience) Done() <-chan struct{} { return p.timer().Done() }

// Err says why the context has ended, if it has.
func (p *patience) Err() error { return p.timer().Err() }

func (p *patience) timer() context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timed == nil {
		p.timed, p.cancel = context.WithDeadline(p.Context, p.until)
		if p.ended {
			p.cancel()
		}
	}
	return p.timed
}

// end ends the context.
func (p *patience) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.cancel != nil {
		p.cancel()
	}
}
