package cache_test

import (
	"context"
	"fmt"
	"maps"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/budget"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// upstream is a source whose tokens tell what was asked for and how often. It
// notes when it is asked.
type upstream struct {
	life, takes time.Duration

	mu      sync.Mutex // protects all following fields
	answer  func(ctx context.Context, request tokensource.Request) error
	asked   []tokensource.Request
	times   []time.Time
	running int
	most    int
}

func (u *upstream) Token(ctx context.Context, request tokensource.Request) (imds.Token, error) {
	u.mu.Lock()
	u.asked, u.times = append(u.asked, request), append(u.times, time.Now())
	n := len(u.asked)
	u.running++
	u.most = max(u.most, u.running)
	answer := u.answer
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.running--
	}()
	if trace := httptrace.ContextClientTrace(ctx); trace != nil { // as a client of HTTP does
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
	if u.takes > 0 {
		<-time.After(u.takes)
	}
	if answer != nil {
		if err := answer(ctx, request); err != nil {
			return imds.Token{}, err
		}
	}
	return imds.NewToken(fmt.Sprintf("%s#%d", wanted(request), n), imds.Token{ExpiresOn: time.Now().Add(u.life)}), nil
}

// answers changes what the upstream answers; nil is a token.
func (u *upstream) answers(err error) {
	u.answersBy(func(context.Context, tokensource.Request) error { return err })
}

func (u *upstream) answersBy(answer func(context.Context, tokensource.Request) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

func (u *upstream) calls() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.asked)
}

// limits returns the most requests in any second, and at once.
func (u *upstream) limits() (perSecond, atOnce int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	first := 0
	for i, at := range u.times {
		for at.Sub(u.times[first]) >= time.Second {
			first++
		}
		perSecond = max(perSecond, i-first+1)
	}
	return perSecond, u.most
}

// since returns how many requests came in a span after a time.
func (u *upstream) since(start time.Time, span time.Duration) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, at := range u.times {
		if !at.Before(start) && at.Before(start.Add(span)) {
			n++
		}
	}
	return n
}

func wanted(request tokensource.Request) string {
	request.Fresh = false
	return fmt.Sprintf("%+v|%q|%q", request.Identity, request.Resource, request.Version)
}

// bench is a cache in front of an upstream, and what it observed.
type bench struct {
	*cache.Cache
	t        *testing.T
	upstream *upstream
	budget   *budget.Budget

	mu      sync.Mutex // protects all following fields
	results map[cache.Result]int
	gone    map[types.UID]bool
}

// newBench returns a cache with the documented limits, unless change says
// otherwise, that runs until the test ends. Use it within a bubble.
func newBench(t *testing.T, source *upstream, change func(*cache.Options)) *bench {
	t.Helper()
	return newBenchWithin(t, source, budget.Options{}, change)
}

// unlimited lets a test ask as much as it likes.
func unlimited() budget.Options { return budget.Options{PerSecond: 1 << 20, AtOnce: 1 << 20} }

func newBenchWithin(t *testing.T, source *upstream, limits budget.Options, change func(*cache.Options)) *bench {
	t.Helper()
	b := &bench{t: t, upstream: source, budget: budget.New(limits), results: map[cache.Result]int{}, gone: map[types.UID]bool{}}
	share := b.budget.Share(1, 0)
	options := cache.Options{
		Source: source, Share: func(identity.Identity) *budget.Share { return share }, Pods: b,
		Observe: func(r cache.Result) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.results[r]++
		},
	}
	if change != nil {
		change(&options)
	}
	b.Cache = cache.New(options)
	ctx, stop := context.WithCancel(t.Context())
	go b.Run(ctx)
	t.Cleanup(func() { stop(); pass(10 * time.Minute) }) // calls under way end within that
	return b
}

// Alive reports whether a test has not let the pod end.
func (b *bench) Alive(_ identity.Key, uid types.UID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.gone[uid]
}

func (b *bench) end(uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone[uid] = true
}

func (b *bench) observed() map[cache.Result]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.results)
}

// as asks for a token, named by its resource, as a pod.
func as(pod, resource string) tokensource.Ask {
	return tokensource.Ask{
		Request: tokensource.Request{Identity: identity.Identity{Key: identity.Key{Namespace: "ns", Name: "id"}}, Resource: resource},
		Pod:     identity.Key{Namespace: "ns", Name: pod}, UID: types.UID(pod),
	}
}

func fresh(ask tokensource.Ask) tokensource.Ask {
	ask.Fresh = true
	return ask
}

// get asks and returns which of the upstream's answers came.
func (b *bench) get(ask tokensource.Ask) (string, v1.Reason) {
	b.t.Helper()
	token, err := b.Token(b.t.Context(), ask)
	if err != nil {
		return "", refusal.Of(err).Reason
	}
	n, ok := strings.CutPrefix(token.Value(), wanted(ask.Request))
	if !ok {
		b.t.Errorf("asked for %s, got %s", wanted(ask.Request), token.Value())
	}
	return n, ""
}

// want asks, and the answer must be that one of the upstream's.
func (b *bench) want(ask tokensource.Ask, answer string) {
	b.t.Helper()
	if got, reason := b.get(ask); got != answer || reason != "" {
		b.t.Errorf("%s: got %q %s, want %q", ask.Resource, got, reason, answer)
	}
}

// refused asks, and must be refused for that reason.
func (b *bench) refused(ask tokensource.Ask, reason v1.Reason) {
	b.t.Helper()
	if got, why := b.get(ask); why != reason {
		b.t.Errorf("%s: got %q %s, want %s", ask.Resource, got, why, reason)
	}
}

// pass lets time pass, and everything happen that is due.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func down() error {
	return refusal.New(v1.ReasonUpstreamUnavailable, "down")
}
