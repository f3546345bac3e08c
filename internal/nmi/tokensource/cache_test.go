package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// upstream is a source whose tokens tell what was asked for and how often.
type upstream struct {
	calls atomic.Int32
	life  time.Duration
	// answer, if set, is asked first; a nil error lets the token through.
	answer func(ctx context.Context) error
}

func (u *upstream) Token(ctx context.Context, request tokensource.Request) (imds.Token, error) {
	n := u.calls.Add(1)
	if u.answer != nil {
		if err := u.answer(ctx); err != nil {
			return imds.Token{}, err
		}
	}
	return imds.NewToken(fmt.Sprintf("%s#%d", wanted(request), n), imds.Token{ExpiresOn: time.Now().Add(u.life)}), nil
}

func wanted(request tokensource.Request) string {
	return fmt.Sprintf("%+v|%q|%q", request.Identity, request.Resource, request.Version)
}

func request(name string) tokensource.Request {
	return tokensource.Request{Identity: identity.Identity{Key: identity.Key{Namespace: "ns", Name: name}}, Resource: "r"}
}

func reasonOf(err error) v1.Reason {
	if err == nil {
		return ""
	}
	return refusal.Of(err).Reason
}

func TestManyCallersOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		source := &upstream{life: time.Hour, answer: func(context.Context) error { <-gate; return nil }}
		var results sync.Map
		cache := tokensource.NewCache(source, tokensource.CacheOptions{Observe: func(r tokensource.Result) {
			n, _ := results.LoadOrStore(r, new(atomic.Int32))
			n.(*atomic.Int32).Add(1)
		}})
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if token, err := cache.Token(t.Context(), request("a")); err != nil || token.Value() != wanted(request("a"))+"#1" {
					t.Errorf("got %q, %v", token.Value(), err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		group.Wait()
		if _, err := cache.Token(t.Context(), request("a")); err != nil {
			t.Fatal(err)
		}
		got := map[tokensource.Result]int32{}
		results.Range(func(k, n any) bool { got[k.(tokensource.Result)] = n.(*atomic.Int32).Load(); return true })
		want := map[tokensource.Result]int32{tokensource.Miss: 1, tokensource.Coalesced: 99, tokensource.Hit: 1}
		if diff := cmp.Diff(want, got); diff != "" || source.calls.Load() != 1 {
			t.Errorf("%d calls, %s", source.calls.Load(), diff)
		}
	})
}

func TestTheCallGoesOnWhenTheFirstCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		source := &upstream{life: time.Hour, answer: func(ctx context.Context) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		cache := tokensource.NewCache(source, tokensource.CacheOptions{})
		first, leave := context.WithCancel(t.Context())
		left := make(chan error)
		go func() { _, err := cache.Token(first, request("a")); left <- err }()
		synctest.Wait()
		leave()
		if err := <-left; reasonOf(err) != v1.ReasonUpstreamUnavailable {
			t.Errorf("the one that left got %v", err)
		}
		close(gate)
		if token, err := cache.Token(t.Context(), request("a")); err != nil || token.Value() != wanted(request("a"))+"#1" {
			t.Errorf("the next one got %q, %v", token.Value(), err)
		}
	})
}

func TestTokensAreServedUntilShortlyBeforeTheirEnd(t *testing.T) {
	for name, test := range map[string]struct {
		life, later time.Duration
		calls       int32
	}{
		"at once":                        {24 * time.Hour, 0, 1},
		"before the margin":              {24 * time.Hour, 23*time.Hour + 54*time.Minute, 1},
		"within the margin":              {24 * time.Hour, 23*time.Hour + 56*time.Minute, 2},
		"after its end":                  {24 * time.Hour, 25 * time.Hour, 2},
		"a short life, first quarters":   {4 * time.Minute, 2 * time.Minute, 1},
		"a short life, the last quarter": {4 * time.Minute, 3*time.Minute + time.Second, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &upstream{life: test.life}
				cache := tokensource.NewCache(source, tokensource.CacheOptions{})
				for _, wait := range []time.Duration{0, test.later} {
					<-time.After(wait)
					if _, err := cache.Token(t.Context(), request("a")); err != nil {
						t.Fatal(err)
					}
				}
				if got := source.calls.Load(); got != test.calls {
					t.Errorf("%d calls, want %d", got, test.calls)
				}
			})
		})
	}
}

func TestATokenOutlivesUpstreamWhileItIsGood(t *testing.T) {
	down := &refusal.Error{Reason: v1.ReasonUpstreamUnavailable}
	for name, test := range map[string]struct {
		answer func(context.Context) error
		left   time.Duration
		want   v1.Reason
	}{
		"upstream is down":                     {func(context.Context) error { return down }, time.Minute, ""},
		"upstream throttles":                   {func(context.Context) error { return &refusal.Error{Reason: v1.ReasonUpstreamThrottled} }, time.Minute, ""},
		"upstream hangs":                       {func(ctx context.Context) error { <-ctx.Done(); return down }, time.Minute, ""},
		"upstream refuses":                     {func(context.Context) error { return &refusal.Error{Reason: v1.ReasonUpstreamRefused} }, time.Minute, v1.ReasonUpstreamRefused},
		"upstream is down and the token ended": {func(context.Context) error { return down }, -time.Minute, v1.ReasonUpstreamUnavailable},
		"upstream is down, seconds left":       {func(context.Context) error { return down }, 5 * time.Second, v1.ReasonUpstreamUnavailable},
		"the source panics":                    {func(context.Context) error { panic("mistake") }, -time.Minute, v1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &upstream{life: time.Hour}
				cache := tokensource.NewCache(source, tokensource.CacheOptions{})
				if _, err := cache.Token(t.Context(), request("a")); err != nil {
					t.Fatal(err)
				}
				source.answer = test.answer
				<-time.After(time.Hour - test.left)
				start := time.Now()
				token, err := cache.Token(t.Context(), request("a"))
				if reasonOf(err) != test.want || (err == nil) != (token.Value() == wanted(request("a"))+"#1") {
					t.Errorf("got %q, %v", token.Value(), err)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("took %s", took)
				}
				synctest.Wait()
				<-time.After(time.Minute) // a hanging call ends within its bound
			})
		})
	}
}

func TestFailuresAreNotKept(t *testing.T) {
	source := &upstream{life: time.Hour, answer: func(context.Context) error { return errors.New("broken") }}
	cache := tokensource.NewCache(source, tokensource.CacheOptions{})
	if _, err := cache.Token(t.Context(), request("a")); err == nil {
		t.Fatal("no error")
	}
	source.answer = nil
	if _, err := cache.Token(t.Context(), request("a")); err != nil {
		t.Errorf("the failure was kept: %v", err)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	source := &upstream{life: time.Hour}
	cache := tokensource.NewCache(source, tokensource.CacheOptions{Size: 10})
	for i := range 100 {
		if _, err := cache.Token(t.Context(), request(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	source.calls.Store(0)
	for i := range 100 {
		if _, err := cache.Token(t.Context(), request(fmt.Sprint(99-i))); err != nil {
			t.Fatal(err)
		}
	}
	if got := source.calls.Load(); got < 90 || got > 99 {
		t.Errorf("%d of 100 were asked for again; at most 10 and at least one should have been there", got)
	}
}

// Two requests that differ in anything never share a token, whatever the order
// and however many at a time.
func TestDifferentRequestsNeverShare(t *testing.T) {
	source := &upstream{life: time.Hour}
	cache := tokensource.NewCache(source, tokensource.CacheOptions{Size: 20})
	var group sync.WaitGroup
	for worker := range 8 {
		random := rand.New(rand.NewPCG(uint64(worker), 5))
		group.Go(func() {
			for range 500 {
				r := anyRequest(random)
				token, err := cache.Token(t.Context(), r)
				if got := token.Value(); err != nil || len(got) < len(wanted(r)) || got[:len(wanted(r))+1] != wanted(r)+"#" {
					t.Errorf("asked for %s, got %q, %v", wanted(r), got, err)
				}
			}
		})
	}
	group.Wait()
}

func anyRequest(random *rand.Rand) tokensource.Request {
	pick := func(all ...string) string { return all[random.IntN(len(all))] }
	id := identity.Identity{
		Key:        identity.Key{Namespace: pick("a", "ab"), Name: pick("c", "bc")},
		Kind:       identity.Kind(random.IntN(3)),
		TenantID:   pick("", "t"),
		Namespaced: random.IntN(2) == 0,
		Federated:  random.IntN(2) == 0,
	}
	if client, err := identity.ParseClientID(pick("x", "y")); err == nil {
		id.ClientID = client
	}
	return tokensource.Request{Identity: id, Resource: pick("r", "r/"), Version: pick("", "1", "2")}
}

func TestAnIdentityWithoutASourceIsRefused(t *testing.T) {
	managed, principal := &upstream{life: time.Hour}, &upstream{life: time.Hour}
	for name, test := range map[string]struct {
		id   identity.Identity
		want v1.Reason
	}{
		"managed identity":     {identity.Identity{}, ""},
		"service principal":    {identity.Identity{Kind: identity.ServicePrincipal}, ""},
		"certificate":          {identity.Identity{Kind: identity.ServicePrincipalCertificate}, ""},
		"federated":            {identity.Identity{Federated: true}, v1.ReasonUnsupportedIdentityType},
		"a kind of the future": {identity.Identity{Kind: 7}, v1.ReasonUnsupportedIdentityType},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tokensource.Sources{Managed: managed, Principal: principal}.Token(t.Context(), tokensource.Request{Identity: test.id})
			if reasonOf(err) != test.want {
				t.Errorf("got %v", err)
			}
			_, err = tokensource.Sources{}.Token(t.Context(), tokensource.Request{Identity: test.id})
			if reasonOf(err) != v1.ReasonUnsupportedIdentityType {
				t.Errorf("without a source: %v", err)
			}
		})
	}
	if _, err := (tokensource.Sources{}).Token(t.Context(), tokensource.Request{}); reasonOf(err) != v1.ReasonUnsupportedIdentityType {
		t.Errorf("without any source: %v", err)
	}
}
