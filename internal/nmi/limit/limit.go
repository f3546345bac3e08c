// Package limit bounds what one caller may ask of the agent, and all together, so
// that a pod gone wild costs its neighbours nothing.
//
// It knows addresses, and must not know pods, paths or answers: it comes before
// anything that costs more than itself.
package limit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Options configure a [Limiter]. Zero values stand for the defaults.
type Options struct {
	// PerSecond is how many requests a caller may make on average; 200. An
	// instant may see twice as many.
	PerSecond int
	// AtOnce is how many requests of one caller may be under way; 64.
	AtOnce int
	// AllAtOnce is how many of all callers may be; 1024. Beyond it a caller that
	// has none under way gets one.
	AllAtOnce int
	// Callers bounds how many callers are told apart; 4096. More of them count as
	// one.
	Callers int
	// Connections is how many connections a caller may have open; 512.
	Connections int
	// Observe is told which limit a request, or a connection, met; nil tells
	// nobody.
	Observe func(Limit)
}

// Limit is one of the limits; the set is closed and labels a metric.
type Limit string

// The limits.
const (
	Rate        Limit = "rate"
	AtOnce      Limit = "at_once"
	AllAtOnce   Limit = "all_at_once"
	Connections Limit = "connections"
)

func (o Options) withDefaults() Options {
	for _, n := range []struct {
		value    *int
		standard int
	}{{&o.PerSecond, 200}, {&o.AtOnce, 64}, {&o.AllAtOnce, 1024}, {&o.Callers, 4096}, {&o.Connections, 512}} {
		if *n.value == 0 {
			*n.value = n.standard
		}
	}
	if o.Observe == nil {
		o.Observe = func(Limit) {}
	}
	return o
}

// Limiter is safe for concurrent use. Use [New].
type Limiter struct {
	options Options

	mu      sync.Mutex // protects all following fields, and those of callers
	callers map[netip.Addr]*caller
	others  *caller
	running int
}

// caller is what is known of one address.
type caller struct {
	bucket      *rate.Limiter
	running     int
	connections int
	// leave ends one request.
	leave func()
}

// New returns a limiter that knows no caller.
func New(o Options) *Limiter {
	l := &Limiter{options: o.withDefaults(), callers: map[netip.Addr]*caller{}}
	l.others = l.newCaller()
	return l
}

func (l *Limiter) newCaller() *caller {
	c := &caller{bucket: rate.NewLimiter(rate.Limit(l.options.PerSecond), 2*l.options.PerSecond)}
	c.leave = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.running--
		l.running--
	}
	return c
}

// Enter lets a request in; leave must follow. Otherwise the error is a refusal
// that says when to try again.
func (l *Limiter) Enter(remote netip.Addr) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.caller(remote)
	var met Limit
	switch {
	case c.running >= l.options.AtOnce:
		met = AtOnce
	case c.running > 0 && l.running >= l.options.AllAtOnce:
		met = AllAtOnce
	case !c.bucket.Allow():
		met = Rate
	default:
		c.running++
		l.running++
		return c.leave, nil
	}
	l.options.Observe(met)
	return nil, l.refuse(met)
}

func (l *Limiter) refuse(met Limit) error {
	out := &refusal.Error{Reason: v1.ReasonLimited, After: time.Second}
	switch met {
	case Rate:
		out.Message = "the pod asks too often: keep the token until shortly before its end, and try again"
	case AtOnce:
		out.Message = "the pod has too many requests under way: wait for their answers, and try again"
	default:
		out.Message = "the node's pods have too many requests under way: try again"
	}
	return out
}

// caller returns what is known of an address. The lock is held.
func (l *Limiter) caller(remote netip.Addr) *caller {
	if c := l.callers[remote]; c != nil {
		return c
	}
	if len(l.callers) >= l.options.Callers {
		l.forgetIdle()
	}
	if len(l.callers) >= l.options.Callers {
		return l.others
	}
	c := l.newCaller()
	l.callers[remote] = c
	return c
}

// forgetIdle forgets callers of which there is nothing to know: those with
// nothing under way and a full bucket.
func (l *Limiter) forgetIdle() {
	for remote, c := range l.callers {
		if c.running == 0 && c.connections == 0 && c.bucket.Tokens() >= float64(c.bucket.Burst()) {
			delete(l.callers, remote)
		}
	}
}
