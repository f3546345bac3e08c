package cache_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// patient asks as an SDK does that obeys Retry-After, and returns how long it took
// and how often it was told to come back.
func (b *bench) patient(ask tokensource.Ask) (time.Duration, int) {
	start := time.Now()
	for told := 0; ; told++ {
		_, err := b.Token(b.t.Context(), ask)
		if err == nil {
			return time.Since(start), told
		}
		why, after := refusal.Of(err).Reason, refusal.Of(err).After
		if why != v1.ReasonLimited && why != v1.ReasonUpstreamUnavailable || after < time.Second || after > 20*time.Second {
			b.t.Errorf("%s: %v, after %s", ask.Resource, err, after)
			return 0, told
		}
		<-time.After(after.Truncate(time.Second) + time.Second)
	}
}

// impatient asks as an SDK does that tries three times more, 1, 2 and 4 seconds
// later, whatever it is told.
func (b *bench) impatient(ask tokensource.Ask) (time.Duration, bool) {
	start := time.Now()
	for attempt := range 4 {
		if _, err := b.Token(b.t.Context(), ask); err == nil {
			return time.Since(start), true
		}
		if attempt < 3 {
			<-time.After(time.Second << attempt)
		}
	}
	return time.Since(start), false
}

func (b *bench) withinLimits() {
	b.t.Helper()
	if perSecond, atOnce := b.upstream.limits(); perSecond > 20 || atOnce > 5 {
		b.t.Errorf("upstream was asked %d times in one second, %d at once", perSecond, atOnce)
	}
}

func TestFromColdFiveHundredKeys(t *testing.T) {
	for name, pods := range map[string]int{"of 64 pods": 64, "of 512 pods": 512, "of one pod": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &upstream{life: 24 * time.Hour, takes: 150 * time.Millisecond}, nil)
				var group sync.WaitGroup
				for i := range 512 {
					group.Go(func() {
						ask := as(fmt.Sprint("pod-", i%pods), fmt.Sprint("r-", i))
						if i%2 == 0 {
							if took, _ := b.patient(ask); took > 27*time.Second {
								t.Errorf("%s: answered after %s", ask.Resource, took)
							}
						} else if took, ok := b.impatient(ask); !ok || took > 27*time.Second {
							t.Errorf("%s: given up after %s", ask.Resource, took)
						}
					})
				}
				group.Wait()
				b.withinLimits()
				if b.upstream.calls() != 512 {
					t.Errorf("%d calls", b.upstream.calls())
				}
			})
		})
	}
}

func TestFromColdManyPodsOfFewIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: 24 * time.Hour, takes: 300 * time.Millisecond}, nil)
		var group sync.WaitGroup
		for i := range 64 {
			group.Go(func() {
				if _, reason := b.get(as(fmt.Sprint("pod-", i), fmt.Sprint("id-", i%8))); reason != "" {
					t.Errorf("pod %d was refused: %s", i, reason)
				}
			})
		}
		group.Wait()
		b.withinLimits()
		if b.upstream.calls() != 8 {
			t.Errorf("%d calls for 8 keys", b.upstream.calls())
		}
	})
}

// flood asks 2,000 times a second, without waiting for answers, for some seconds.
func (b *bench) flood(seconds int, ask func(i int) tokensource.Ask) {
	for i := range 2000 * seconds {
		go func() { _, _ = b.Token(b.t.Context(), ask(i)) }() // whatever comes of it
		<-time.After(500 * time.Microsecond)
	}
}

func TestAFloodIsNotNoticedByNeighbours(t *testing.T) {
	unknown := refusal.New(v1.ReasonUpstreamRefused, "AADSTS500011")
	unknown.Err = &imds.RefusedError{Status: 400, Description: "AADSTS500011"}
	for name, test := range map[string]struct {
		err error
		ask func(i int) tokensource.Ask
	}{
		"of resources that nobody knows": {unknown, func(i int) tokensource.Ask { return as("flood", fmt.Sprint("flood-", i)) }},
		"of resources that exist":        {nil, func(i int) tokensource.Ask { return as("flood", fmt.Sprint("flood-", i)) }},
		"that bypasses the cache":        {nil, func(int) tokensource.Ask { return fresh(as("flood", "warm-1")) }},
		"that bypasses it everywhere":    {nil, func(i int) tokensource.Ask { return fresh(as("flood", fmt.Sprint("flood-", i%2000))) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Room for the neighbours and a fraction of the flood.
				b := newBench(t, &upstream{life: 24 * time.Hour, takes: 20 * time.Millisecond}, func(o *cache.Options) { o.Size = 150 })
				for i := range 100 {
					b.get(as(fmt.Sprint("neighbour-", i), fmt.Sprint("warm-", i)))
				}
				b.upstream.answersBy(func(_ context.Context, r tokensource.Request) error {
					if strings.HasPrefix(r.Resource, "flood") {
						return test.err
					}
					return nil
				})
				over := make(chan struct{})
				go func() { defer close(over); b.flood(10, test.ask) }()
				pass(5 * time.Second)
				for i := range 100 {
					start := time.Now()
					if _, reason := b.get(as(fmt.Sprint("neighbour-", i), fmt.Sprint("warm-", i))); reason != "" || time.Since(start) > 0 {
						t.Errorf("a warm neighbour: %s after %s", reason, time.Since(start))
					}
				}
				start := time.Now()
				if _, reason := b.get(as("new", "new")); reason != "" || time.Since(start) > 500*time.Millisecond {
					t.Errorf("a new neighbour: %s after %s", reason, time.Since(start))
				}
				<-over
				pass(10 * time.Second)
				b.withinLimits()
			})
		})
	}
}

// The cache never holds more than it may, and what goes is the oldest of whoever
// has most.
func TestRoomIsTakenFromWhoHasMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBenchWithin(t, &upstream{life: 24 * time.Hour}, unlimited(), func(o *cache.Options) { o.Size = 20 })
		for i := range 5 {
			b.get(as("small", fmt.Sprint("small-", i)))
		}
		for i := range 100 {
			b.get(as("large", fmt.Sprint("large-", i)))
			pass(time.Millisecond)
		}
		asked := b.upstream.calls()
		for i := range 5 {
			b.get(as("small", fmt.Sprint("small-", i)))
		}
		for i := range 15 {
			b.get(as("large", fmt.Sprint("large-", 99-i)))
		}
		if got := b.upstream.calls(); got != asked {
			t.Errorf("%d were asked for again", got-asked)
		}
		b.get(as("large", "large-84"))
		if got := b.upstream.calls(); got != asked+1 {
			t.Error("more is kept than there is room for")
		}
	})
}

// What others use, too, is not lost with the pod that asked first.
func TestWhatOthersUseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBenchWithin(t, &upstream{life: 24 * time.Hour}, unlimited(), func(o *cache.Options) { o.Size = 10 })
		for i := range 5 {
			b.get(as("first", fmt.Sprint("shared-", i)))
		}
		for i := range 4 {
			b.get(as(fmt.Sprint("other-", i), fmt.Sprint("shared-", i)))
		}
		for i := range 100 {
			b.get(as("first", fmt.Sprint("more-", i)))
			pass(time.Millisecond)
		}
		asked := b.upstream.calls()
		for i := range 4 {
			b.get(as(fmt.Sprint("other-", i), fmt.Sprint("shared-", i)))
		}
		if got := b.upstream.calls(); got != asked {
			t.Errorf("%d shared tokens were lost", got-asked)
		}
	})
}

func TestFailuresOfOnePodAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBenchWithin(t, &upstream{life: time.Hour}, unlimited(), func(o *cache.Options) { o.Failures = 3 })
		refused := refusal.New(v1.ReasonUpstreamRefused, "no")
		b.upstream.answers(refused)
		for i := range 10 {
			b.refused(as("a", fmt.Sprint("r-", i)), v1.ReasonUpstreamRefused)
			pass(time.Millisecond)
		}
		b.refused(as("b", "other"), v1.ReasonUpstreamRefused)
		asked := b.upstream.calls()
		for _, ask := range []tokensource.Ask{as("a", "r-9"), as("a", "r-8"), as("a", "r-7"), as("b", "other")} {
			b.refused(ask, v1.ReasonUpstreamRefused)
		}
		if got := b.upstream.calls(); got != asked {
			t.Errorf("%d of the last were forgotten", got-asked)
		}
		b.refused(as("a", "r-6"), v1.ReasonUpstreamRefused)
		if got := b.upstream.calls(); got != asked+1 {
			t.Error("more failures are kept than may be")
		}
	})
}

func TestTokensAreReplacedAheadOfTheirEndForLivePodsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: 24 * time.Hour}, nil)
		b.want(as("stays", "r-stays"), "#1")
		b.want(as("ends", "r-ends"), "#2")
		b.want(as("ends", "r-shared"), "#3")
		b.want(as("stays", "r-shared"), "#3")
		b.end("ends")
		pass(72 * time.Hour)
		asked := map[string]int{}
		for _, request := range b.upstream.asked {
			asked[request.Resource]++
		}
		if asked["r-stays"] < 5 || asked["r-stays"] > 7 || asked["r-shared"] < 5 || asked["r-ends"] != 1 {
			t.Errorf("in three days: %v", asked)
		}
		b.end("stays")
		pass(time.Hour)
		before := b.upstream.calls()
		pass(72 * time.Hour)
		if got := b.upstream.calls(); got != before {
			t.Errorf("%d tokens were replaced for nobody", got-before)
		}
	})
}

// An hour without upstream is not noticed by anybody who has a token, and when it
// is back it is not asked for all of them at once.
func TestUpstreamIsAwayForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 3000
		b := newBench(t, &upstream{life: 24 * time.Hour}, nil)
		var all []tokensource.Ask
		for i := range keys {
			ask := as(fmt.Sprint("pod-", i%100), fmt.Sprint("r-", i))
			all = append(all, ask)
			b.patient(ask)
		}
		pass(72 * time.Hour) // replacements come evenly by then
		// Each is due when two fifths to three quarters of a day are over.
		mean := keys / (0.575 * 24 * 60)
		b.upstream.answers(down())
		random := rand.New(rand.NewPCG(1, 1))
		for range 60 {
			pass(time.Minute)
			for range 200 {
				ask := all[random.IntN(keys)]
				if _, reason := b.get(ask); reason != "" {
					t.Fatalf("%s was refused: %s", ask.Resource, reason)
				}
			}
		}
		b.upstream.answers(nil)
		back := time.Now()
		pass(6 * time.Hour)
		window := 30 * time.Minute
		for at := back; at.Before(back.Add(6*time.Hour - window)); at = at.Add(time.Minute) {
			if rate := float64(b.upstream.since(at, window)) / window.Minutes(); rate > 2*mean {
				t.Fatalf("%s after upstream was back it was asked %.1f times a minute, %.1f is the mean", at.Sub(back), rate, mean)
			}
		}
		for _, ask := range all {
			if _, reason := b.get(ask); reason != "" {
				t.Fatalf("%s was refused afterwards: %s", ask.Resource, reason)
			}
		}
		t.Logf("%.2f replacements a minute; upstream was asked %d times while it was away", mean, b.upstream.since(back.Add(-time.Hour), time.Hour))
	})
}
