package throttle

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

const (
	// firstHold is how long a bucket rests after a refusal that does not say how
	// long, doubled by each further one up to longestHold.
	firstHold   = 10 * time.Second
	longestHold = 5 * time.Minute
	// probeWait is when to ask again while the answer to a probe is awaited.
	probeWait = 2 * time.Second
	// epsilon is how exact tokens are counted.
	epsilon = 1e-6
)

// bucket is what is known of one of ARM's.
type bucket struct {
	limit   Limit
	reserve int // what ARM refills at once
	limiter *rate.Limiter
	flying  int // requests that have no answer yet

	// While held, nothing is sent before until; then one probe, whose answer
	// decides.
	held     bool
	until    time.Time
	probing  bool
	refusals int // in a row
}

func newBucket(limit Limit, every time.Duration) *bucket {
	reserve := int(math.Ceil(float64(limit.PerMinute) * every.Minutes()))
	b := &bucket{limit: limit, reserve: reserve}
	b.limiter = rate.NewLimiter(rate.Limit(float64(limit.PerMinute)/60), b.capacity())
	return b
}

// capacity is what the bucket holds at most: all but what ARM refills at once. It
// is not known when that comes, so that no more than the rest can be counted on.
func (b *bucket) capacity() int { return max(1, b.limit.Burst-b.reserve) }

// lower makes the bucket hold at most tokens, which may be below zero.
func (b *bucket) lower(now time.Time, tokens float64) {
	for spend := int(math.Ceil(b.limiter.TokensAt(now) - tokens - epsilon)); spend > 0; {
		n := min(spend, b.limiter.Burst())
		b.limiter.ReserveN(now, n)
		spend -= n
	}
}

// wait is how long it takes until the bucket lets a request through; asked says
// that ARM asked for it.
func (b *bucket) wait(now time.Time) (wait time.Duration, asked bool) {
	switch {
	case b.held && now.Before(b.until):
		return b.until.Sub(now), true
	case b.held && b.probing:
		return probeWait, true
	case b.held:
		return 0, true
	}
	missing := 1 - b.limiter.TokensAt(now)
	if missing < epsilon {
		return 0, false
	}
	return time.Duration(math.Ceil(missing / float64(b.limiter.Limit()) * float64(time.Second))), false
}

// take lets a request through, for which wait is zero. It reports whether the
// request is a probe.
func (b *bucket) take(now time.Time) (probe bool) {
	b.flying++
	if b.held {
		b.probing = true
		return true
	}
	b.limiter.ReserveN(now, 1)
	return false
}

// settle takes the answer to a request in. Told says that left is known.
func (b *bucket) settle(now time.Time, probe bool, left int, told bool) {
	if probe && b.probing {
		b.probing, b.held, b.refusals = false, false, 0
		b.lower(now, 0)
	}
	if told {
		b.lower(now, float64(left-b.flying-b.reserve))
	}
}

// hold lets nothing through for as long as ARM asks. Refusals of requests that
// were sent before the first one count as one.
func (b *bucket) hold(now time.Time, after time.Duration) {
	holding := b.held && now.Before(b.until)
	if after <= 0 && !holding {
		after = min(firstHold<<min(b.refusals, 10), longestHold)
	}
	if until := now.Add(after); !holding || until.After(b.until) {
		b.until = until
	}
	if !holding {
		b.refusals++
	}
	b.held, b.probing = true, false
}

// idle reports whether a new bucket would be no more careful than this one.
func (b *bucket) idle(now time.Time) bool {
	return b.flying == 0 && !b.held && b.limiter.TokensAt(now) >= float64(b.limiter.Burst())
}
