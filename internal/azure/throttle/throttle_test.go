package throttle_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// world is a Pacer on a clock that stands still until it is moved.
type world struct {
	*throttle.Pacer
	now time.Time
}

func newWorld(limits throttle.Limits) *world {
	w := &world{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.restart(limits)
	return w
}

func (w *world) restart(limits throttle.Limits) {
	w.Pacer = throttle.New(limits, func() time.Time { return w.now })
}

func (w *world) sleep(d time.Duration) { w.now = w.now.Add(d) }

func target(name string) throttle.Target {
	return throttle.Target{Subscription: "s", Resource: "/subscriptions/s/" + name}
}

// after returns how long err asks to wait, and zero for nil.
func after(t *testing.T, err error) time.Duration {
	t.Helper()
	if err == nil {
		return 0
	}
	wait, ok := errors.AsType[*throttle.NotBeforeError](err)
	if !ok || wait.After <= 0 {
		t.Fatalf("got %v, want one that says when", err)
	}
	return wait.After
}

// send sends as many as are let through, up to n, and settles each with answer.
func (w *world) send(t *testing.T, n int, to throttle.Target, class throttle.Class, answer throttle.Answer) (sent int) {
	t.Helper()
	for range n {
		permit, err := w.Take(to, class)
		if after(t, err) > 0 {
			return sent
		}
		permit.Settle(answer)
		sent++
	}
	return sent
}

func (w *world) ready(to throttle.Target, last time.Time) time.Duration {
	if wait := w.Ready(to, last); wait != nil {
		return wait.After
	}
	return 0
}

func TestABurstAndThenTheRate(t *testing.T) {
	for name, test := range map[string]struct {
		class throttle.Class
		last  time.Duration // before now; negative: never
		burst int
		every time.Duration
	}{
		"updates of a resource never updated":        {throttle.Update, -1, 8, 15 * time.Second},
		"updates of one updated now":                 {throttle.Update, 0, 0, 15 * time.Second},
		"updates of one updated 30 seconds ago":      {throttle.Update, 30 * time.Second, 2, 15 * time.Second},
		"updates of one updated an hour ago":         {throttle.Update, time.Hour, 8, 15 * time.Second},
		"reads, of which nobody knows what was sent": {throttle.Read, -1, 3, 5 * time.Second},
		"polls": {throttle.Poll, -1, 3, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(throttle.Documented())
			var last time.Time
			if test.last >= 0 {
				last = w.now.Add(-test.last)
			}
			if wait := w.ready(target("a"), last); test.class == throttle.Update && (wait > 0) != (test.burst == 0) {
				t.Errorf("has to wait %s for the first", wait)
			}
			if got := w.send(t, 100, target("a"), test.class, throttle.Answer{}); got != test.burst {
				t.Errorf("%d at once, want %d", got, test.burst)
			}
			_, err := w.Take(target("a"), test.class)
			if got := after(t, err).Round(time.Millisecond); got != test.every {
				t.Errorf("the next after %s, want %s", got, test.every)
			}
			w.sleep(test.every - time.Millisecond)
			if got := w.send(t, 9, target("a"), test.class, throttle.Answer{}); got != 0 {
				t.Errorf("%d too early", got)
			}
			w.sleep(time.Millisecond)
			if got := w.send(t, 9, target("a"), test.class, throttle.Answer{}); got != 1 {
				t.Errorf("%d in time, want 1", got)
			}
			if got := w.send(t, 1, target("b"), test.class, throttle.Answer{}); got != 1 {
				t.Error("another resource had to wait")
			}
		})
	}
}

func TestTheSubscriptionLimitsItsResources(t *testing.T) {
	limits := throttle.Documented()
	limits.SubscriptionUpdates = throttle.Limit{PerMinute: 6, Burst: 9}
	w := newWorld(limits)
	sent := 0
	for i := range 20 {
		sent += w.send(t, 1, target(fmt.Sprint(i)), throttle.Update, throttle.Answer{})
	}
	if sent != 1 { // what 15 s bring, and no more is known
		t.Errorf("%d at once, want 1", sent)
	}
	var wait *throttle.NotBeforeError
	_, err := w.Take(target("x"), throttle.Update)
	if !errors.As(err, &wait) || wait.Scope != throttle.Subscription || wait.Asked {
		t.Errorf("got %v", err)
	}
	other := throttle.Target{Subscription: "other", Resource: "/subscriptions/other/x"}
	if w.send(t, 1, other, throttle.Update, throttle.Answer{}) != 1 || w.send(t, 1, target("x"), throttle.Read, throttle.Answer{}) != 1 {
		t.Error("another subscription or class had to wait")
	}
}

// TestWhatARMSaysIsLeft: other clients share the buckets.
func TestWhatARMSaysIsLeft(t *testing.T) {
	for name, test := range map[string]struct {
		left map[throttle.Scope]int
		want time.Duration
	}{
		"as many as we think":            {map[throttle.Scope]int{throttle.Resource: 11}, 0},
		"more than we think":             {map[throttle.Scope]int{throttle.Resource: 100}, 0},
		"one beside what comes at once":  {map[throttle.Scope]int{throttle.Resource: 5}, 0},
		"only what may come at once":     {map[throttle.Scope]int{throttle.Resource: 4}, 15 * time.Second},
		"nothing":                        {map[throttle.Scope]int{throttle.Resource: 0}, 75 * time.Second},
		"nothing for the subscription":   {map[throttle.Scope]int{throttle.Subscription: 0}, 501 * 60 * time.Second / 500},
		"nothing for us at ARM's door":   {map[throttle.Scope]int{throttle.Principal: 0}, 1100 * time.Millisecond},
		"nothing of what does not count": {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(throttle.Documented())
			w.ready(target("a"), time.Time{})
			w.send(t, 1, target("a"), throttle.Update, throttle.Answer{Left: test.left})
			if got := w.ready(target("a"), time.Time{}); (got - test.want).Abs() > 10*time.Millisecond {
				t.Errorf("has to wait %s, want %s", got, test.want)
			}
		})
	}
}

func TestAfterARefusalOneProbe(t *testing.T) {
	refused := throttle.Answer{Refused: true, After: 30 * time.Second, Empty: []throttle.Scope{throttle.Subscription}}
	w := newWorld(throttle.Documented())
	all := func(answer throttle.Answer) (sent int) {
		for i := range 20 {
			sent += w.send(t, 1, target(fmt.Sprint(i)), throttle.Update, answer)
		}
		return sent
	}
	w.send(t, 1, target("0"), throttle.Update, refused)
	for range 3 {
		w.sleep(29 * time.Second)
		if got := all(throttle.Answer{}); got != 0 {
			t.Fatalf("%d were sent too early", got)
		}
		w.sleep(time.Second)
		if got := all(refused); got != 1 {
			t.Fatalf("%d probes, want 1", got)
		}
	}
	w.sleep(30 * time.Second)
	probe, err := w.Take(target("0"), throttle.Update)
	if err != nil {
		t.Fatal(err)
	}
	w.sleep(time.Minute)
	if got := all(throttle.Answer{}); got != 0 {
		t.Errorf("%d were sent while the probe had no answer", got)
	}
	probe.Settle(throttle.Answer{})
	if got := all(throttle.Answer{}); got != 0 {
		t.Errorf("%d were sent at once: nobody knows that there is more than the one", got)
	}
	w.sleep(time.Second)
	if got := all(throttle.Answer{}); got != 8 {
		t.Errorf("%d were sent in the second after, want the rate's 8", got)
	}
}

func TestAProbeThatIsLostIsSentAgain(t *testing.T) {
	w := newWorld(throttle.Documented())
	w.send(t, 1, target("a"), throttle.Update, throttle.Answer{Refused: true, After: time.Second, Empty: []throttle.Scope{throttle.Resource}})
	w.sleep(time.Second)
	for range 2 {
		if got := w.send(t, 1, target("a"), throttle.Update, throttle.Answer{Lost: true}); got != 1 {
			t.Fatal("no probe was sent")
		}
	}
}

// TestRequestsInTheAirAreRefusedTogether: they are one refusal, and none of them
// ends the wait.
func TestRequestsInTheAirAreRefusedTogether(t *testing.T) {
	w := newWorld(throttle.Documented())
	var flying []*throttle.Permit
	for i := range 10 {
		permit, err := w.Take(target(fmt.Sprint(i)), throttle.Update)
		if err != nil {
			t.Fatal(err)
		}
		flying = append(flying, permit)
	}
	for i, permit := range flying {
		permit.Settle(throttle.Answer{Refused: i%2 == 0, Empty: []throttle.Scope{throttle.Subscription}})
	}
	if got := w.ready(target("x"), time.Time{}); got != 10*time.Second {
		t.Errorf("has to wait %s, want the first rest of 10s", got)
	}
}

func TestWhatIsHeld(t *testing.T) {
	for name, test := range map[string]struct {
		answer            throttle.Answer
		same, beside, get time.Duration // updates of the same resource, of another, reads of the same
	}{
		"the resource is empty":      {throttle.Answer{Refused: true, After: time.Hour, Empty: []throttle.Scope{throttle.Resource}}, time.Hour, 0, 0},
		"the subscription is empty":  {throttle.Answer{Refused: true, After: time.Hour, Empty: []throttle.Scope{throttle.Subscription}}, time.Hour, time.Hour, 0},
		"ARM does not say what":      {throttle.Answer{Refused: true, After: time.Hour}, time.Hour, time.Hour, 0},
		"ARM does not say how long":  {throttle.Answer{Refused: true, Empty: []throttle.Scope{throttle.Resource}}, 10 * time.Second, 0, 0},
		"ARM is down and says when":  {throttle.Answer{After: time.Minute}, time.Minute, 0, 0},
		"ARM is down and says none":  {throttle.Answer{}, 0, 0, 0},
		"nobody knows what happened": {throttle.Answer{Lost: true}, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(throttle.Documented())
			w.send(t, 1, target("a"), throttle.Update, test.answer)
			_, read := w.Take(target("a"), throttle.Read)
			got := []time.Duration{w.ready(target("a"), time.Time{}), w.ready(target("b"), time.Time{}), after(t, read)}
			if diff := cmp.Diff([]time.Duration{test.same, test.beside, test.get}, got); diff != "" {
				t.Errorf("waits (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRestsWithoutAWordGetLonger(t *testing.T) {
	w := newWorld(throttle.Documented())
	var rests []time.Duration
	for range 7 {
		w.send(t, 1, target("a"), throttle.Update, throttle.Answer{Refused: true, Empty: []throttle.Scope{throttle.Resource}})
		rests = append(rests, w.ready(target("a"), time.Time{}))
		w.sleep(rests[len(rests)-1])
	}
	want := []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute}
	if diff := cmp.Diff(want, rests); diff != "" {
		t.Errorf("rests (-want +got):\n%s", diff)
	}
}

func TestHold(t *testing.T) {
	w := newWorld(throttle.Documented())
	w.Hold(target("a"), time.Minute)
	if a, b := w.ready(target("a"), time.Time{}), w.ready(target("b"), time.Time{}); a != time.Minute || b != 0 {
		t.Errorf("waits are %s and %s", a, b)
	}
}

func TestBudgets(t *testing.T) {
	w := newWorld(throttle.Documented())
	w.send(t, 3, target("a"), throttle.Update, throttle.Answer{})
	w.send(t, 1, target("b"), throttle.Update, throttle.Answer{})
	w.send(t, 1, target("b"), throttle.Poll, throttle.Answer{Refused: true, Empty: []throttle.Scope{throttle.Resource}})
	want := []throttle.Budget{
		{throttle.Principal, throttle.Read, 224}, {throttle.Principal, throttle.Update, 146},
		{throttle.Resource, throttle.Poll, 0}, {throttle.Resource, throttle.Update, 5},
		{throttle.Subscription, throttle.Read, 199}, {throttle.Subscription, throttle.Update, 121},
	}
	less := func(a, b throttle.Budget) bool {
		return string(a.Scope)+string(a.Class) < string(b.Scope)+string(b.Class)
	}
	if diff := cmp.Diff(want, w.Budgets(), cmpopts.SortSlices(less)); diff != "" {
		t.Errorf("budgets (-want +got):\n%s", diff)
	}
}

// TestForgottenBucketsAreNoFuller: resources come and go, and a bucket that is
// dropped is not one that could be emptied twice.
func TestForgottenBucketsAreNoFuller(t *testing.T) {
	limits := throttle.Documented()
	limits.SubscriptionUpdates, limits.PrincipalUpdates = throttle.Limit{PerMinute: 1e6, Burst: 2e6}, throttle.Limit{PerMinute: 1e6, Burst: 2e6}
	w := newWorld(limits)
	w.send(t, 8, target("busy"), throttle.Update, throttle.Answer{})
	for i := range 5000 {
		w.send(t, 1, target(fmt.Sprint(i)), throttle.Update, throttle.Answer{})
	}
	if w.send(t, 1, target("busy"), throttle.Update, throttle.Answer{}) != 0 {
		t.Error("a bucket in use was dropped")
	}
	w.sleep(time.Hour)
	for i := range 5000 {
		w.send(t, 1, target(fmt.Sprint("later", i)), throttle.Update, throttle.Answer{})
	}
	if got := w.send(t, 100, target("busy"), throttle.Update, throttle.Answer{}); got != 8 {
		t.Errorf("%d at once, want 8", got)
	}
}

func TestNotBeforeSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		err  throttle.NotBeforeError
		want string
	}{
		"our own": {throttle.NotBeforeError{After: 1500 * time.Millisecond, Scope: throttle.Resource, Class: throttle.Update}, "no update for 1.5s: to keep under ARM's limit (per resource)"},
		"ARM's":   {throttle.NotBeforeError{After: time.Minute, Scope: throttle.Subscription, Class: throttle.Read, Asked: true}, "no get for 1m0s: ARM has asked to wait (per subscription)"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.err.Error(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// arm is a bucket of ARM's: tokens come in steps whose phase nobody knows, or
// one by one.
type arm struct {
	limit  throttle.Limit
	every  time.Duration // zero: one by one
	at     time.Time
	tokens float64
}

func (a *arm) refill(now time.Time) {
	passed := now.Sub(a.at)
	if a.every > 0 {
		passed = passed.Truncate(a.every)
	}
	a.at = a.at.Add(passed)
	a.tokens = min(float64(a.limit.Burst), a.tokens+passed.Minutes()*float64(a.limit.PerMinute))
}

func (a *arm) take(now time.Time) bool {
	a.refill(now)
	if a.tokens < 1-1e-9 {
		return false
	}
	a.tokens--
	return true
}

// TestARMNeverRefuses is the point of it all: however ARM fills its buckets,
// whatever the controller wants, and however often it starts anew, ARM has a
// token for each request. With other clients there, every burst of theirs costs
// one refusal at most.
func TestARMNeverRefuses(t *testing.T) {
	for seed := range uint64(120) {
		random := rand.New(rand.NewPCG(seed, 7))
		foreign, told := seed%4 == 3, seed%3 == 0
		limits := throttle.Documented()
		w := newWorld(limits)
		a := &arm{limit: limits.ResourceUpdates, tokens: float64(limits.ResourceUpdates.Burst), at: w.now.Add(-time.Duration(random.Int64N(int64(time.Minute))))}
		if seed%2 == 0 {
			a.every = time.Minute
		}
		var last time.Time
		refused, bursts, sent := 0, 0, 0
		for end := w.now.Add(time.Hour); w.now.Before(end); {
			if random.IntN(2) == 0 {
				w.sleep(time.Duration(random.Int64N(int64(8 * time.Second))))
			}
			switch {
			case random.IntN(50) == 0:
				w.sleep(3 * time.Minute) // nothing to do
			case random.IntN(60) == 0:
				w.restart(limits) // with nothing but the time of the last update
				w.sleep(throttle.Start)
			case foreign && random.IntN(100) == 0:
				a.refill(w.now)
				a.tokens = min(a.tokens, float64(random.IntN(3)))
				bursts++
			}
			if w.ready(target("a"), last) > 0 {
				continue
			}
			permit, err := w.Take(target("a"), throttle.Update)
			if err != nil {
				t.Fatalf("seed %d: ready, and yet %v", seed, err)
			}
			last = w.now
			sent++
			if a.take(w.now) {
				var answer throttle.Answer
				if told || foreign {
					answer.Left = map[throttle.Scope]int{throttle.Resource: int(a.tokens)}
				}
				permit.Settle(answer)
				continue
			}
			refused++
			permit.Settle(throttle.Answer{Refused: true, Empty: []throttle.Scope{throttle.Resource}, After: time.Minute})
		}
		if refused > bursts {
			t.Errorf("seed %d: ARM refused %d, others came %d times", seed, refused, bursts)
		}
		if least := 100; !foreign && sent < least { // 4 a minute would be 240
			t.Errorf("seed %d: only %d were sent, want %d", seed, sent, least)
		}
	}
}
