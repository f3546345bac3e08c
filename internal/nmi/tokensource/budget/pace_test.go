package budget

import (
	"math/rand/v2"
	"testing"
	"time"
)

// most returns how many of the times fall within any span of that length.
func most(times []time.Time, span time.Duration) int {
	out, first := 0, 0
	for i, at := range times {
		for !times[first].After(at.Add(-span)) {
			first++
		}
		out = max(out, i-first+1)
	}
	return out
}

// Whatever the limits and whenever requests come, no second sees more than it
// may, nor a fraction of it more than a burst; and nothing is held back for
// longer than that needs.
func TestNoSecondSeesMoreThanItMay(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		perSecond, atOnce := 1+random.IntN(40), 1+random.IntN(10)
		p := newPace(perSecond, atOnce)
		start := time.Unix(1_700_000_000, 0)
		now := start
		var left []time.Time
		for range 500 {
			if random.IntN(3) == 0 {
				now = now.Add(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
			}
			if at := p.earliest(now); at.After(now) {
				now = at
			}
			p.leave(now)
			left = append(left, now)
		}
		if got := most(left, time.Second); got > perSecond {
			t.Errorf("%d a second, %d at once: %d in one second", perSecond, atOnce, got)
		}
		burst := min(atOnce, perSecond)
		if got := most(left, time.Second*time.Duration(burst)/time.Duration(perSecond)); got > burst {
			t.Errorf("%d a second, %d at once: %d in a burst", perSecond, atOnce, got)
		}
	}
}

func TestALongQueueGetsTheWholeLimit(t *testing.T) {
	p := newPace(20, 5)
	start := time.Unix(1_700_000_000, 0)
	now := start
	for range 512 {
		if at := p.earliest(now); at.After(now) {
			now = at
		}
		p.leave(now)
	}
	if took := now.Sub(start); took < 25*time.Second || took > 26500*time.Millisecond {
		t.Errorf("512 requests took %s at 20 a second", took)
	}
}

func TestComplaintsSlowTheBudgetDown(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for name, test := range map[string]struct {
		complaints []time.Duration // what each says of Retry-After, one as soon as the last is over
		pause      time.Duration   // until the next request after the last of them
		each       time.Duration   // then
	}{
		"none":                      {nil, 0, 51 * time.Millisecond},
		"one that says how long":    {[]time.Duration{7 * time.Second}, 7 * time.Second, 51 * time.Millisecond},
		"one that does not say":     {[]time.Duration{0}, time.Second, 51 * time.Millisecond},
		"two that do not say":       {[]time.Duration{0, 0}, 2 * time.Second, 102 * time.Millisecond},
		"two that say how long":     {[]time.Duration{time.Second, 3 * time.Second}, 3 * time.Second, 102 * time.Millisecond},
		"many":                      {[]time.Duration{0, 0, 0, 0, 0, 0}, 16 * time.Second, 816 * time.Millisecond},
		"one that says a long time": {[]time.Duration{time.Hour}, time.Minute, 51 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p, now := newPace(20, 5), start
			for i, after := range test.complaints {
				if i > 0 {
					now = p.earliest(now)
				}
				p.throttled(now, after)
				p.throttled(now, 0) // another answer to the same burst adds nothing
			}
			if got := max(0, p.earliest(now).Sub(now)); got != test.pause {
				t.Errorf("paused for %s, want %s", got, test.pause)
			}
			if got := p.each(); got != test.each {
				t.Errorf("then %s each, want %s", got, test.each)
			}
		})
	}
}

func TestThePaceRecovers(t *testing.T) {
	p, now := newPace(20, 5), time.Unix(1_700_000_000, 0)
	p.throttled(now, 0)
	p.slow = 3
	for after, want := range map[time.Duration]int{5 * time.Second: 3, 6 * time.Second: 2, 11 * time.Second: 1, 16 * time.Second: 0, time.Hour: 0} {
		q := p
		q.earliest(now.Add(after))
		if q.slow != want {
			t.Errorf("%s later it is halved %d times, want %d", after, q.slow, want)
		}
	}
}
