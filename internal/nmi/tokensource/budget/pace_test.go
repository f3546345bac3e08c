package budget

import (
	"math/rand/v2"
	"slices"
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

// Whatever the limits, whenever requests come and however long they are on their
// way, in no second more arrive than may, and no fraction of one sees more than a
// burst leave.
func TestNoSecondSeesMoreThanItMay(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		perSecond, atOnce := 1+random.IntN(40), 1+random.IntN(10)
		p := newPace(perSecond, atOnce)
		now := time.Unix(1_700_000_000, 0)
		var left, arrived []time.Time
		for range 500 {
			if random.IntN(3) == 0 {
				now = now.Add(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
			}
			if at := p.earliest(now); at.After(now) {
				now = at
			}
			place := p.leave(now)
			written, onItsWay := time.Duration(random.Int64N(int64(preparing-underWay))), time.Duration(random.Int64N(int64(underWay)))
			left, arrived = append(left, now), append(arrived, now.Add(written+onItsWay))
			if random.IntN(3) > 0 {
				p.sent(place, now, now.Add(written))
			}
			if random.IntN(2) == 0 {
				p.answered(place, now, now.Add(written+onItsWay))
			}
		}
		slices.SortFunc(arrived, time.Time.Compare)
		if got := most(arrived, time.Second); got > perSecond {
			t.Errorf("%d a second, %d at once: %d in one second", perSecond, atOnce, got)
		}
		burst := min(atOnce, perSecond)
		if got := most(left, time.Second*time.Duration(burst)/time.Duration(perSecond)); got > burst {
			t.Errorf("%d a second, %d at once: %d in a burst", perSecond, atOnce, got)
		}
	}
}

func TestALongQueueGetsTheWholeLimit(t *testing.T) {
	for answer, most := range map[time.Duration]time.Duration{time.Millisecond: 25800 * time.Millisecond, time.Second: 26500 * time.Millisecond} {
		p := newPace(20, 5)
		start := time.Unix(1_700_000_000, 0)
		now := start
		for range 512 {
			if at := p.earliest(now); at.After(now) {
				now = at
			}
			place := p.leave(now)
			p.sent(place, now, now)
			p.answered(place, now, now.Add(answer))
		}
		if took := now.Sub(start); took < 25*time.Second || took > most {
			t.Errorf("512 requests that were answered after %s took %s at 20 a second", answer, took)
		}
	}
}

func TestAnAnswerThatComesLateChangesNothing(t *testing.T) {
	p, start := newPace(1, 1), time.Unix(1_700_000_000, 0)
	place := p.leave(start)
	again := p.leave(start.Add(2 * time.Second))
	p.answered(place, start, start.Add(2*time.Second))
	p.answered(again, start.Add(2*time.Second), start.Add(5*time.Second))
	if got := p.earliest(start.Add(2 * time.Second)).Sub(start); got != 3*time.Second+preparing {
		t.Errorf("the next one leaves %s after the first", got)
	}
}

func TestComplaintsSlowTheBudgetDown(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for name, test := range map[string]struct {
		complaints []time.Duration // what each says of Retry-After, one as soon as the last is over
		pause      time.Duration   // until the next request after the last of them
		each       time.Duration   // then
	}{
		"none":                      {nil, 0, 51750 * time.Microsecond},
		"one that says how long":    {[]time.Duration{7 * time.Second}, 7 * time.Second, 51750 * time.Microsecond},
		"one that does not say":     {[]time.Duration{0}, time.Second, 51750 * time.Microsecond},
		"two that do not say":       {[]time.Duration{0, 0}, 2 * time.Second, 103500 * time.Microsecond},
		"two that say how long":     {[]time.Duration{time.Second, 3 * time.Second}, 3 * time.Second, 103500 * time.Microsecond},
		"many":                      {[]time.Duration{0, 0, 0, 0, 0, 0}, 16 * time.Second, 828 * time.Millisecond},
		"one that says a long time": {[]time.Duration{time.Hour}, time.Minute, 51750 * time.Microsecond},
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
