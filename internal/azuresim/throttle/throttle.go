// Package throttle counts requests against token buckets, and says of a refusal
// whose doing it was.
//
// It is plain arithmetic behind a mutex and an injected clock. It must not know
// which limits Azure has, or what an answer looks like.
package throttle

import (
	"math"
	"sync"
	"time"
)

// Bucket names a bucket and gives its size. Buckets of one key are one.
type Bucket struct {
	Name      string  // for the answer: the same for many keys
	Key       string  // what is counted together, within Name
	PerMinute float64 // 0: not limited
	Burst     int
	// Every is the interval at which tokens come, all that it is worth at once;
	// 0: one by one.
	Every time.Duration
}

// Left is what a bucket holds after a request.
type Left struct {
	Name   string
	Tokens int
}

// Refusal says which bucket was empty.
type Refusal struct {
	Bucket string
	// After is when there will be a token.
	After time.Duration
	// Foreign: without what others took, there would have been one.
	Foreign bool
	// Early: the one who asks was told to wait, and did not. A request that may
	// have been on its way when that was said is none.
	Early bool
}

// onItsWay is how long a request takes at the most, on a busy machine, from where
// it is decided to here.
const onItsWay = 500 * time.Millisecond

// Meter holds the buckets. Make one with [New]; it is safe for concurrent use.
type Meter struct {
	now func() time.Time

	mu      sync.Mutex // protects all following fields
	buckets map[string]*level
}

// New returns a meter whose buckets are full.
func New(now func() time.Time) *Meter {
	return &Meter{now: now, buckets: map[string]*level{}}
}

// one is a token, but for what floating point loses.
const one = 1 - 1e-6

// level is how a bucket stands.
type level struct {
	at     time.Time // of the last refill
	tokens float64
	own    map[string]float64   // by principal: what there would be if it were alone
	told   map[string]time.Time // by principal: when it was told to wait
	until  map[string]time.Time // by principal: when it was told to come back
}

// Take takes a token from every bucket for principal, or none from any: then the
// refusal is of the first that is empty. It returns what is left in each.
func (m *Meter) Take(principal string, buckets ...Bucket) ([]Left, *Refusal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	var refusal *Refusal
	for _, b := range buckets {
		if l := m.level(b, now); l != nil && l.tokens < one && refusal == nil {
			refusal = l.refuse(b, principal, now)
		}
	}
	var left []Left
	for _, b := range buckets {
		l := m.level(b, now)
		if l == nil {
			continue
		}
		if refusal == nil {
			l.take(b, principal, 1)
		}
		left = append(left, Left{Name: b.Name, Tokens: int(max(0, l.tokens))})
	}
	return left, refusal
}

// Drain takes up to n tokens from each bucket for principal and returns what is
// left in each.
func (m *Meter) Drain(principal string, n int, buckets ...Bucket) []Left {
	m.mu.Lock()
	defer m.mu.Unlock()
	var left []Left
	for _, b := range buckets {
		l := m.level(b, m.now())
		if l == nil {
			continue
		}
		l.take(b, principal, min(float64(n), math.Floor(l.tokens)))
		left = append(left, Left{Name: b.Name, Tokens: int(l.tokens)})
	}
	return left
}

// Reset fills all buckets, as if nothing had been asked.
func (m *Meter) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.buckets)
}

// level returns the bucket refilled up to now, or nil for one without a limit.
func (m *Meter) level(b Bucket, now time.Time) *level {
	if b.PerMinute <= 0 {
		return nil
	}
	key := b.Name + "\x00" + b.Key
	l, ok := m.buckets[key]
	if !ok {
		l = &level{at: now, tokens: float64(b.Burst), own: map[string]float64{}, until: map[string]time.Time{}, told: map[string]time.Time{}}
		m.buckets[key] = l
	}
	l.refill(b, now)
	return l
}

func (l *level) refill(b Bucket, now time.Time) {
	passed := now.Sub(l.at)
	if b.Every > 0 {
		passed = passed.Truncate(b.Every)
	}
	if passed <= 0 {
		return
	}
	l.at = l.at.Add(passed)
	fresh := passed.Minutes() * b.PerMinute
	l.tokens = min(float64(b.Burst), l.tokens+fresh)
	for who, tokens := range l.own {
		l.own[who] = min(float64(b.Burst), tokens+fresh)
	}
}

func (l *level) take(b Bucket, principal string, n float64) {
	l.tokens -= n
	l.own[principal] = l.alone(b, principal) - n
}

// alone is what principal would find if nobody else had asked.
func (l *level) alone(b Bucket, principal string) float64 {
	if tokens, ok := l.own[principal]; ok {
		return tokens
	}
	return float64(b.Burst)
}

func (l *level) refuse(b Bucket, principal string, now time.Time) *Refusal {
	r := &Refusal{
		Bucket: b.Name, After: l.wait(b, now),
		Foreign: l.alone(b, principal) >= one,
	}
	if !now.Before(l.until[principal]) {
		l.told[principal] = now
	}
	r.Early = now.Sub(l.told[principal]) > onItsWay
	l.until[principal] = now.Add(r.After)
	return r
}

// wait is how long it takes until there is a token.
func (l *level) wait(b Bucket, now time.Time) time.Duration {
	missing := time.Duration(math.Round((1 - l.tokens) / b.PerMinute * float64(time.Minute)))
	if b.Every > 0 {
		missing = (missing + b.Every - 1).Truncate(b.Every)
	}
	return l.at.Add(missing).Sub(now)
}
