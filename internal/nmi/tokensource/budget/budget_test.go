package budget_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/budget"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// upstream counts what a budget lets through.
type upstream struct {
	t     *testing.T
	takes time.Duration

	mu      sync.Mutex // protects all following fields
	running int
	most    int
	starts  []string
	times   []time.Time
	dropped map[string]*refusal.Error
}

func newUpstream(t *testing.T, takes time.Duration) *upstream {
	t.Cleanup(func() { <-time.After(10*takes + time.Minute) }) // all of a test's calls end before it does
	return &upstream{t: t, takes: takes, dropped: map[string]*refusal.Error{}}
}

// job is a call to it.
type job struct {
	upstream *upstream
	name     string
	outcome  budget.Outcome
	placed   chan struct{} // closed when ticket is set
	ticket   *budget.Ticket
}

func (u *upstream) enqueue(share *budget.Share, owner, name string, outcome budget.Outcome) (*job, error) {
	j := &job{upstream: u, name: name, outcome: outcome, placed: make(chan struct{})}
	var err error
	j.ticket, err = share.Enqueue(owner, j)
	close(j.placed)
	return j, err
}

func (u *upstream) want(share *budget.Share, owner, name string) *job {
	u.t.Helper()
	j, err := u.enqueue(share, owner, name, budget.Outcome{})
	if err != nil {
		u.t.Fatalf("%s: %v", name, err)
	}
	return j
}

func (j *job) Start() {
	<-j.placed
	u := j.upstream
	u.mu.Lock()
	u.running++
	u.most = max(u.most, u.running)
	u.starts, u.times = append(u.starts, j.name), append(u.times, time.Now())
	u.mu.Unlock()
	<-time.After(u.takes)
	u.mu.Lock()
	u.running--
	u.mu.Unlock()
	j.ticket.Done(j.outcome)
}

func (j *job) Dropped(why error) {
	j.upstream.mu.Lock()
	defer j.upstream.mu.Unlock()
	j.upstream.dropped[j.name] = refusal.Of(why)
}

// pass lets time pass, and everything happen that is due.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// perSecond returns the most starts in any second.
func (u *upstream) perSecond() int {
	out, first := 0, 0
	for i, at := range u.times {
		for at.Sub(u.times[first]) >= time.Second {
			first++
		}
		out = max(out, i-first+1)
	}
	return out
}

func (u *upstream) order() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return strings.Join(u.starts, " ")
}

func (u *upstream) drops() map[string]*refusal.Error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.dropped)
}

func TestNeverMoreThanTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{}), newUpstream(t, 180*time.Millisecond)
		tokens, forwarded := b.Share(3, 0), b.Share(1, 2)
		random := rand.New(rand.NewPCG(3, 4))
		for i := range 400 {
			share := tokens
			if i%4 == 0 {
				share = forwarded
			}
			u.want(share, fmt.Sprint(random.IntN(30)), fmt.Sprint(i))
			pass(time.Duration(random.Int64N(int64(20 * time.Millisecond))))
		}
		pass(time.Minute)
		if len(u.starts) != 400-len(u.drops()) || len(u.drops()) > 0 || b.Waiting() != 0 {
			t.Fatalf("%d started, %d dropped, %d wait", len(u.starts), len(u.drops()), b.Waiting())
		}
		if u.most != 5 || u.perSecond() > 20 {
			t.Errorf("%d at once, %d in one second", u.most, u.perSecond())
		}
	})
}

func TestAFloodDelaysNobodyByMoreThanItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{AtOnce: 1}), newUpstream(t, 10*time.Millisecond)
		share := b.Share(1, 0)
		for i := range 500 {
			u.want(share, "flood", fmt.Sprint("flood-", i))
		}
		pass(2 * time.Second)
		u.mu.Lock()
		before := len(u.starts)
		u.mu.Unlock()
		for i := range 10 {
			u.want(share, fmt.Sprint("pod-", i), fmt.Sprint("first-", i))
		}
		pass(2 * time.Second)
		u.mu.Lock()
		defer u.mu.Unlock()
		flood := 0
		var firsts []string
		for _, name := range u.starts[before:] {
			if strings.HasPrefix(name, "first-") {
				firsts = append(firsts, name)
			} else if len(firsts) < 10 {
				flood++
			}
		}
		if len(firsts) != 10 || flood > 2 {
			t.Errorf("%d of 10 started, after %d of the flood", len(firsts), flood)
		}
	})
}

func TestTheLongestQueueGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{Waiting: 10}), newUpstream(t, time.Hour)
		share := b.Share(1, 0)
		for i := range 15 { // 5 start, 10 wait
			u.want(share, "flood", fmt.Sprint("flood-", i))
		}
		if _, err := u.enqueue(share, "flood", "one more", budget.Outcome{}); err == nil || refusal.Of(err).Reason != v1.ReasonLimited || refusal.Of(err).After < time.Second {
			t.Errorf("the flood's own next got %v", err)
		}
		u.want(share, "other", "other-1")
		u.want(share, "third", "third-1")
		synctest.Wait()
		if len(u.drops()) != 2 || u.drops()["flood-14"] == nil || u.drops()["flood-13"] == nil || b.Waiting() != 10 {
			t.Errorf("dropped %v, %d wait", u.drops(), b.Waiting())
		}
		for name, why := range u.drops() {
			if why.Reason != v1.ReasonLimited || why.After < time.Second || why.After > 20*time.Second {
				t.Errorf("%s was told %+v", name, why)
			}
		}
	})
}

func TestWhatOthersWaitForIsNotDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{Waiting: 2}), newUpstream(t, time.Hour)
		share := b.Share(1, 0)
		var jobs []*job
		for i := range 7 {
			jobs = append(jobs, u.want(share, "flood", fmt.Sprint("flood-", i)))
		}
		jobs[5].ticket.Join("other")
		jobs[6].ticket.Join("other")
		if _, err := u.enqueue(share, "third", "third-1", budget.Outcome{}); err == nil {
			t.Error("what two wait for gave way to what one waits for")
		}
		synctest.Wait()
		if len(u.drops()) != 0 {
			t.Errorf("dropped %v", u.drops())
		}
	})
}

func TestACallStartsAtTheTurnOfWhoeverWantsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{PerSecond: 1, AtOnce: 1}), newUpstream(t, 0)
		share := b.Share(1, 0)
		var last *job
		for i := range 5 {
			last = u.want(share, "a", fmt.Sprint("a", i))
		}
		last.ticket.Join("b")
		last.ticket.Join("b") // twice is once
		u.want(share, "b", "b0")
		pass(time.Minute)
		last.ticket.Join("c") // too late to matter
		if diff := cmp.Diff("a0 a1 a4 a2 b0 a3", u.order()); diff != "" {
			t.Error(diff)
		}
		if after, waits := last.ticket.After(); waits {
			t.Errorf("it still waits %s", after)
		}
	})
}

func TestSharesGetWhatTheyWeigh(t *testing.T) {
	for name, test := range map[string]struct {
		tokens, forwarded int
		want              string
	}{
		"both want more":      {8, 4, "f t t t f t t t f t t f"},
		"only one wants":      {5, 0, "t t t t t"},
		"one wants a little":  {5, 1, "f t t t t t"},
		"only the lesser one": {0, 3, "f f f"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, u := budget.New(budget.Options{PerSecond: 1, AtOnce: 1}), newUpstream(t, 0)
				tokens, forwarded := b.Share(3, 0), b.Share(1, 0)
				u.want(tokens, "x", "0")
				for i := range max(test.tokens, test.forwarded) {
					if i < test.forwarded {
						u.want(forwarded, fmt.Sprint("f", i), "f")
					}
					if i < test.tokens {
						u.want(tokens, fmt.Sprint("t", i%2), "t")
					}
				}
				pass(25 * time.Second)
				if diff := cmp.Diff("0 "+test.want, u.order()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestAShareHasABoundOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{}), newUpstream(t, time.Hour)
		tokens, forwarded := b.Share(3, 0), b.Share(1, 2)
		for i := range 5 {
			u.want(forwarded, fmt.Sprint("f", i), "f")
		}
		for i := range 5 {
			u.want(tokens, fmt.Sprint("t", i), "t")
		}
		pass(time.Second)
		if got := u.order(); strings.Count(got, "f") != 2 || strings.Count(got, "t") != 3 {
			t.Errorf("started: %s", got)
		}
	})
}

func TestWhatNobodyWantsAnyMoreIsNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{PerSecond: 1, AtOnce: 1}), newUpstream(t, 45*time.Second)
		share := b.Share(1, 0)
		u.want(share, "a", "first")
		u.want(share, "a", "forgotten")
		again := u.want(share, "b", "wanted again")
		pass(20 * time.Second)
		again.ticket.Join("b")
		pass(2 * time.Minute)
		if diff := cmp.Diff("first wanted again", u.order()); diff != "" || u.drops()["forgotten"] == nil {
			t.Errorf("%s, dropped %v", diff, u.drops())
		}
	})
}

func TestAComplaintStopsEverybodyForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{}), newUpstream(t, 0)
		share := b.Share(1, 0)
		start := time.Now()
		if _, err := u.enqueue(share, "a", "complaint", budget.Outcome{Throttled: true, After: 3 * time.Second}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		j := u.want(share, "b", "next")
		if after, waits := j.ticket.After(); !waits || after < 3*time.Second || after > 4*time.Second {
			t.Errorf("it waits: %v, %s", waits, after)
		}
		pass(time.Minute)
		if got := u.times[1].Sub(start); got != 3*time.Second {
			t.Errorf("the next one left %s later, want 3s", got)
		}
	})
}

// What a caller is told to wait is what it would have waited.
func TestEstimatesAreGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, u := budget.New(budget.Options{}), newUpstream(t, 20*time.Millisecond)
		share := b.Share(1, 0)
		type told struct {
			after time.Duration
			at    time.Time
		}
		all := map[string]told{}
		for i := range 300 {
			j := u.want(share, fmt.Sprint(i%7), fmt.Sprint(i))
			if after, waits := j.ticket.After(); waits && i == 299 {
				all[j.name] = told{after, time.Now()}
			}
		}
		pass(time.Minute)
		for i, name := range u.starts {
			if said, ok := all[name]; ok {
				if off := u.times[i].Sub(said.at) - said.after; off.Abs() > 500*time.Millisecond {
					t.Errorf("told %s, waited %s", said.after, u.times[i].Sub(said.at))
				}
			}
		}
	})
}

func TestAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(budget.Options{AtOnce: 1, Waiting: 1})
		share := b.Share(1, 0)
		held, err := share.Acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		got := make(chan error)
		go func() { _, err := share.Acquire(short, "a"); got <- err }()
		synctest.Wait()
		if _, err := share.Acquire(t.Context(), "a"); refusal.Of(err).Reason != v1.ReasonLimited {
			t.Errorf("with a full queue: %v", err)
		}
		if err := <-got; refusal.Of(err).Reason != v1.ReasonLimited || b.Waiting() != 0 {
			t.Errorf("when the time was up: %v, %d wait", err, b.Waiting())
		}
		go func() {
			next, err := share.Acquire(t.Context(), "a")
			if err == nil {
				next.Done(budget.Outcome{})
			}
			got <- err
		}()
		synctest.Wait()
		held.Done(budget.Outcome{})
		if err := <-got; err != nil {
			t.Errorf("when it was free again: %v", err)
		}
	})
}
