package throttle

import (
	"sync"
	"time"
)

// Gate lets in so many requests in any window of time, and so many at once. Make
// one with [NewGate]; it is safe for concurrent use.
type Gate struct {
	now func() time.Time

	mu    sync.Mutex // protects all following fields
	doors map[string]*door
}

// door is what a gate knows of one key.
type door struct {
	inside  int
	entered []time.Time // within the last window, oldest first
}

// Width is how much a gate lets through. Zero numbers do not limit.
type Width struct {
	Most     int // in any Window
	Window   time.Duration
	Together int // at once
}

// The limits of a gate, as [Gate.Enter] names them.
const (
	RateLimit       = "rate"
	ConcurrentLimit = "concurrent"
)

// NewGate returns a gate with nobody inside.
func NewGate(now func() time.Time) *Gate {
	return &Gate{now: now, doors: map[string]*door{}}
}

// Enter lets a request in, or says which limit is reached. Who is in must leave.
// It returns how many are inside, the request among them.
func (g *Gate) Enter(key string, w Width) (inside int, refused string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d, ok := g.doors[key]
	if !ok {
		d = &door{}
		g.doors[key] = d
	}
	now := g.now()
	for len(d.entered) > 0 && now.Sub(d.entered[0]) >= w.Window {
		d.entered = d.entered[1:]
	}
	switch {
	case w.Together > 0 && d.inside >= w.Together:
		return d.inside, ConcurrentLimit
	case w.Most > 0 && len(d.entered) >= w.Most:
		return d.inside, RateLimit
	}
	if w.Most > 0 {
		d.entered = append(d.entered, now)
	}
	d.inside++
	return d.inside, ""
}

// Leave lets a request out that was let in.
func (g *Gate) Leave(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.doors[key].inside--
}
