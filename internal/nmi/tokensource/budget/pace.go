package budget

import "time"

const (
	// second is what a second of an upstream's limit counts as here. The bit more
	// is for requests that leave a second apart and arrive a little closer.
	second = 1020 * time.Millisecond
	// recovery is how long after an upstream's complaint the pace doubles again.
	recovery = 5 * time.Second
	// maxSlow bounds how often complaints halve the pace: to a sixteenth.
	maxSlow = 4
	// minPause and maxPause bound what one complaint stops everything for.
	minPause, maxPause = time.Second, time.Minute
)

// pace says when the next request may leave so that no second sees more than
// perSecond of them, and no fraction of a second much more than its part: a burst
// is never longer than what may be under way at once. It reads no clock.
type pace struct {
	perSecond, burst int
	// left holds when the last perSecond requests left; the next one overwrites
	// the oldest, at index next.
	left []time.Time
	next int

	paused time.Time
	// slow is how often the pace is halved, since slowed.
	slow   int
	slowed time.Time
}

func newPace(perSecond, atOnce int) pace {
	return pace{perSecond: perSecond, burst: min(atOnce, perSecond), left: make([]time.Time, perSecond)}
}

// earliest returns when the next request may leave; not after now if at once.
func (p *pace) earliest(now time.Time) time.Time {
	for p.slow > 0 && !now.Before(p.slowed.Add(recovery)) {
		p.slow--
		p.slowed = p.slowed.Add(recovery)
	}
	out := p.paused
	for _, window := range []struct {
		requests int
		span     time.Duration
	}{{p.perSecond, second}, {p.burst, second * time.Duration(p.burst) / time.Duration(p.perSecond)}} {
		first := p.left[(p.next+p.perSecond-window.requests)%p.perSecond]
		if at := first.Add(window.span << p.slow); !first.IsZero() && at.After(out) {
			out = at
		}
	}
	return out
}

// leave records that a request leaves now.
func (p *pace) leave(now time.Time) {
	p.left[p.next] = now
	p.next = (p.next + 1) % p.perSecond
}

// throttled records an answer 429 that asks to wait for after, or does not say.
// All of those that come before a pause is over are one complaint. The first one
// in a while costs a pause only: requests can come closer together than they
// left. Another soon after it says that somebody else on this node asks, too, or
// that the limits are lower, and halves the pace.
func (p *pace) throttled(now time.Time, after time.Duration) {
	if !now.Before(p.paused) {
		if !p.slowed.IsZero() && now.Before(p.slowed.Add(recovery)) {
			p.slow = min(p.slow+1, maxSlow)
		}
		if after <= 0 {
			after = minPause << p.slow
		}
	}
	until := now.Add(min(max(after, minPause), maxPause))
	if until.After(p.paused) {
		p.paused = until
	}
	p.slowed = p.paused
}

// each returns how long a request in a long queue takes to get its turn.
func (p *pace) each() time.Duration {
	return second / time.Duration(p.perSecond) << p.slow
}
