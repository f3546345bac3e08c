package attachment

import (
	"sync"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

// viewAge is for how long at most what ARM showed of a resource is good enough
// to leave the resource alone. Pods come and go faster than ARM may be asked (12
// times a minute for each scale set); before a patch ARM is asked in any case.
const viewAge = 15 * time.Second

// views remembers what ARM showed of resources. It is safe for concurrent use.
type views struct {
	age  time.Duration
	mu   sync.Mutex
	last map[compute.Ref]view // protected by mu
}

type view struct {
	seen    compute.Identities
	at      time.Time
	settled *settled // nil: there was something to do
}

// newViews returns views that are older than no look without a cause.
func newViews(interval time.Duration) *views {
	age := viewAge
	if interval > 0 {
		age = min(age, interval/2)
	}
	return &views{age: age, last: map[compute.Ref]view{}}
}

func (v *views) of(ref compute.Ref, now time.Time) (view, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, ok := v.last[ref]
	if !ok || now.Sub(last.at) >= v.age {
		delete(v.last, ref)
		return view{}, false
	}
	return last, true
}

func (v *views) set(ref compute.Ref, last view) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last[ref] = last
}

// settle keeps how a pass has left a resource that is remembered.
func (v *views) settle(ref compute.Ref, how *settled) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if last, ok := v.last[ref]; ok {
		last.settled = how
		v.last[ref] = last
	}
}

// unsettle returns and forgets how a pass has left the resource; nil if there was
// something to do, or it is too long ago.
func (v *views) unsettle(ref compute.Ref) *settled {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, ok := v.last[ref]
	if !ok {
		return nil
	}
	how := last.settled
	last.settled = nil
	v.last[ref] = last
	return how
}

func (v *views) forget(ref compute.Ref) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.last, ref)
}

// recall begins a pass with what the last one saw.
func (p *pass) recall() {
	if last, ok := p.views.of(p.ref, p.options.Now()); ok {
		p.seen, p.seenAt, p.remembered = &last.seen, last.at, true
	}
}

// show takes in what ARM shows now.
func (p *pass) show(seen compute.Identities) {
	p.seen, p.seenAt, p.remembered = &seen, p.options.Now(), false
}

// remember keeps what was seen, unless it is about to change or in doubt.
func (p *pass) remember() {
	if p.seen == nil || p.seen.Updating || p.wait || p.paused > 0 || p.failure != nil {
		p.views.forget(p.ref)
		return
	}
	p.views.set(p.ref, view{seen: *p.seen, at: p.seenAt})
}
