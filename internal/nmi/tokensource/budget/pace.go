package budget

import "time"

const (
	// preparing is how long a request may take at most from its turn until it is
	// written to the upstream's connection, and underWay from then until the
	// upstream counts it: on a busy node it arrives later than it was let go, and
	// counts for the second in which it arrives. One that was answered earlier has
	// arrived earlier.
	preparing = 250 * time.Millisecond
	underWay  = 35 * time.Millisecond
	// recovery is how long after an upstream's complaint the pace doubles again.
	recovery = 5 * time.Second
	// maxSlow bounds how often complaints halve the pace: to a sixteenth.
	maxSlow = 4
	// minPause and maxPause bound what one complaint stops everything for.
	minPause, maxPause = time.Second, time.Minute
)

// pace says when the next request may leave so that in no second more than
// perSecond of them arrive, and no fraction of a second sees more than its part
// leave: a burst is never longer than what may be under way at once. It reads no
// clock.
type pace struct {
	perSecond, burst int
	// last holds the last perSecond requests; the next one overwrites the oldest,
	// at index next.
	last []departure
	next int

	paused time.Time
	// slow is how often the pace is halved, since slowed.
	slow   int
	slowed time.Time
}

// departure is when a request was let go, and by when it has arrived.
type departure struct{ left, arrived time.Time }

func newPace(perSecond, atOnce int) pace {
	return pace{perSecond: perSecond, burst: min(atOnce, perSecond), last: make([]departure, perSecond)}
}

// earliest returns when the next request may leave; not after now if at once.
func (p *pace) earliest(now time.Time) time.Time {
	for p.slow > 0 && !now.Before(p.slowed.Add(recovery)) {
		p.slow--
		p.slowed = p.slowed.Add(recovery)
	}
	out := p.paused
	for _, rule := range []struct {
		since time.Time
		span  time.Duration
	}{
		{p.last[p.next].arrived, time.Second},
		{p.last[(p.next+p.perSecond-p.burst)%p.perSecond].left, time.Second * time.Duration(p.burst) / time.Duration(p.perSecond)},
	} {
		if at := rule.since.Add(rule.span << p.slow); !rule.since.IsZero() && at.After(out) {
			out = at
		}
	}
	return out
}

// leave records that a request leaves now, and returns its place.
func (p *pace) leave(now time.Time) int {
	place := p.next
	p.last[place] = departure{left: now, arrived: now.Add(preparing)}
	p.next = (p.next + 1) % p.perSecond
	return place
}

// sent records that the request that left then, at that place, is written.
func (p *pace) sent(place int, left, now time.Time) { p.answered(place, left, now.Add(underWay)) }

// answered records that the request that left then, at that place, was answered.
func (p *pace) answered(place int, left, now time.Time) {
	if d := &p.last[place]; d.left.Equal(left) && now.Before(d.arrived) {
		d.arrived = now
	}
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
	return (time.Second + underWay) / time.Duration(p.perSecond) << p.slow
}
