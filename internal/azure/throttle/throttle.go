// Package throttle keeps a client of Azure Resource Manager (ARM) under ARM's
// limits before ARM says so: it counts requests against token buckets of the
// same size, learns from answers what others have taken, and lets nothing
// through while ARM asks to wait.
//
//	bucket         counts                        keyed by
//	Resource       updates | reads | polls       ARM ID of a virtual machine or scale set
//	Subscription   updates | reads and polls     subscription
//	Principal      updates | reads and polls     subscription, before Microsoft.Compute is asked
//
// ARM refills a bucket at intervals, and does not say when. What comes at once
// is therefore never counted on: a bucket of 4 a minute and 12 at most holds 8
// here, so that however the minutes fall, ARM has a token for every one of ours.
//
// When ARM refuses a request, the bucket is closed for as long as ARM asks. Then
// one request goes through, the probe, and the others when it has succeeded.
//
// A process does not know what the one before it sent. Its buckets begin with
// what the time that must have passed since then has brought (see [Start]).
//
// It is pure but for its own counts and reads no clock of its own. It must not
// wait, retry or send: who may not send is told when to come back.
package throttle

import (
	"fmt"
	"math"
	"sync"
	"time"
)

// Start is the time whose tokens a bucket holds that is used for the first time:
// a leader's lease, by which the next process begins after the last. Where it is
// known when the last update was sent, that counts for updates of a resource.
const Start = 15 * time.Second

// Class is what ARM counts apart.
type Class string

// The classes of requests.
const (
	Read   Class = "get"
	Update Class = "update"
	Poll   Class = "poll"
)

// Scope is what a bucket is of.
type Scope string

// The scopes.
const (
	Resource     Scope = "resource"
	Subscription Scope = "subscription"
	Principal    Scope = "principal"
)

// scopes are all of them, the widest first.
func scopes() []Scope { return []Scope{Principal, Subscription, Resource} }

// Target is what a request is about.
type Target struct {
	// Subscription is its GUID and Resource its ARM ID, both in lower case.
	Subscription, Resource string
}

// NotBeforeError says that a request was not sent, and when it can be.
type NotBeforeError struct {
	// After is how long to wait; more than zero.
	After time.Duration
	// Scope and Class are of the bucket.
	Scope Scope
	Class Class
	// Asked says that ARM asked for it; else it is to keep under ARM's limits.
	Asked bool
}

// Error says how long to wait and why.
func (e *NotBeforeError) Error() string {
	why := "to keep under ARM's limit"
	if e.Asked {
		why = "ARM has asked to wait"
	}
	return fmt.Sprintf("no %s for %s: %s (per %s)", e.Class, e.After.Round(time.Millisecond), why, e.Scope)
}

// NonRetriable tells the Azure SDK not to try again by itself.
func (*NotBeforeError) NonRetriable() {}

// Pacer holds the buckets. Make one with [New]; it is safe for concurrent use.
type Pacer struct {
	limits Limits
	now    func() time.Time

	mu      sync.Mutex // protects all following fields
	buckets map[bucketKey]*bucket
	prune   int // at how many buckets idle ones are dropped
}

type bucketKey struct {
	scope Scope
	class Class
	id    string
}

// New returns a Pacer on a clock.
func New(limits Limits, now func() time.Time) *Pacer {
	return &Pacer{limits: limits, now: now, buckets: map[bucketKey]*bucket{}, prune: 1024}
}

// Ready returns nil if an update of the target could be sent now. Last is when
// the last one was sent, by this process or one before; zero if there was none.
func (p *Pacer) Ready(target Target, last time.Time) *NotBeforeError {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	key := keyOf(Resource, Update, target)
	if _, ok := p.buckets[key]; !ok {
		b := p.open(now, key)
		b.lower(now, max(0, now.Sub(last).Minutes())*float64(b.limit.PerMinute))
	}
	return p.wait(now, target, Update)
}

// Take lets a request through, or says when to come back. Every Permit must be
// settled.
func (p *Pacer) Take(target Target, class Class) (*Permit, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if wait := p.wait(now, target, class); wait != nil {
		return nil, wait
	}
	permit := &Permit{pacer: p, target: target, class: class, probes: map[Scope]bool{}}
	for _, scope := range scopes() {
		permit.probes[scope] = p.bucket(now, scope, class, target).take(now)
	}
	return permit, nil
}

// wait is the longest that a bucket asks for; nil if none does.
func (p *Pacer) wait(now time.Time, target Target, class Class) *NotBeforeError {
	var out *NotBeforeError
	for _, scope := range scopes() {
		wait, asked := p.bucket(now, scope, class, target).wait(now)
		if wait > 0 && (out == nil || wait > out.After) {
			out = &NotBeforeError{After: wait, Scope: scope, Class: class, Asked: asked}
		}
	}
	return out
}

func keyOf(scope Scope, class Class, target Target) bucketKey {
	if scope == Resource {
		return bucketKey{scope, class, target.Resource}
	}
	if class == Poll {
		class = Read
	}
	return bucketKey{scope, class, target.Subscription}
}

// bucket returns a bucket, and opens it if need be.
func (p *Pacer) bucket(now time.Time, scope Scope, class Class, target Target) *bucket {
	key := keyOf(scope, class, target)
	if b, ok := p.buckets[key]; ok {
		return b
	}
	b := p.open(now, key)
	if scope != Resource || class != Update {
		b.lower(now, max(1, Start.Minutes()*float64(b.limit.PerMinute)))
	}
	return b
}

// open adds a full bucket.
func (p *Pacer) open(now time.Time, key bucketKey) *bucket {
	if len(p.buckets) >= p.prune {
		for old, b := range p.buckets {
			if b.idle(now) {
				delete(p.buckets, old)
			}
		}
		p.prune = max(1024, 2*len(p.buckets))
	}
	b := newBucket(p.limits.of(key.scope, key.class))
	p.buckets[key] = b
	return b
}

// Hold keeps the updates of a target back, as if ARM had refused one: where ARM
// says so in another way than by an answer of 429. After is how long it asks to
// wait; zero if it does not say.
func (p *Pacer) Hold(target Target, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.bucket(now, Resource, Update, target).hold(now, after)
}

// HoldSubscription keeps every request in a target's subscription back, as ARM has
// asked another process that is gone.
func (p *Pacer) HoldSubscription(target Target, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, class := range []Class{Update, Read} {
		p.bucket(now, Subscription, class, target).hold(now, after)
	}
}

// Permit is the leave to send one request.
type Permit struct {
	pacer  *Pacer
	target Target
	class  Class
	probes map[Scope]bool
}

// Settle takes in what ARM answered. It must be called exactly once.
func (t *Permit) Settle(a Answer) {
	p := t.pacer
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, scope := range scopes() {
		b := p.bucket(now, scope, t.class, t.target)
		b.flying--
		if a.Lost {
			b.probing = b.probing && !t.probes[scope] // the next one is the probe
			continue
		}
		left, told := a.Left[scope]
		b.settle(now, t.probes[scope] && !a.Refused, left, told)
	}
	t.hold(now, a)
}

func (t *Permit) hold(now time.Time, a Answer) {
	bucket := func(scope Scope) *bucket { return t.pacer.bucket(now, scope, t.class, t.target) }
	switch {
	case a.Refused:
		for _, scope := range a.held() {
			bucket(scope).hold(now, a.After)
		}
		for scope, probe := range t.probes {
			if b := bucket(scope); probe && b.probing {
				b.probing = false // refused for another bucket's sake: the next one is the probe
			}
		}
	case a.After > 0: // a server error: of this resource, as far as is known
		bucket(Resource).hold(now, a.After)
	}
}

// Budget is what the emptiest bucket of a kind holds.
type Budget struct {
	Scope Scope
	Class Class
	// Left is in requests, zero at least.
	Left float64
}

// Budgets returns the least that any bucket of each scope and class holds.
func (p *Pacer) Budgets() []Budget {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	least := map[bucketKey]float64{}
	for key, b := range p.buckets {
		left := max(0, b.limiter.TokensAt(now))
		if b.held {
			left = 0
		}
		key.id = ""
		if before, ok := least[key]; ok {
			left = min(left, before)
		}
		least[key] = left
	}
	var out []Budget
	for key, left := range least {
		out = append(out, Budget{Scope: key.scope, Class: key.class, Left: math.Floor(left)})
	}
	return out
}
