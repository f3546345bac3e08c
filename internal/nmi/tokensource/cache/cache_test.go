package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

func TestAThousandCallersOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour, takes: time.Second}, nil)
		var group sync.WaitGroup
		for i := range 1000 {
			group.Go(func() { b.want(as(fmt.Sprint("pod-", i%50), "r"), "#1") })
		}
		group.Wait()
		b.want(as("later", "r"), "#1")
		want := map[cache.Result]int{cache.Miss: 1, cache.Coalesced: 999, cache.Hit: 1}
		if diff := cmp.Diff(want, b.observed()); diff != "" || b.upstream.calls() != 1 {
			t.Errorf("%d calls, %s", b.upstream.calls(), diff)
		}
	})
}

func TestACallerThatLeavesEndsNobodyElsesRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour, takes: 2 * time.Second}, nil)
		first, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { _, err := b.Token(first, as("first", "r")); left <- err }()
		synctest.Wait()
		second := make(chan string, 1)
		go func() { got, _ := b.get(as("second", "r")); second <- got }()
		pass(time.Second)
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left got %v", err)
		}
		if got := <-second; got != "#1" {
			t.Errorf("the one that stayed got %q", got)
		}
		b.want(as("third", "r"), "#1")
	})
}

func TestWhenAllHaveLeftTheCallGoesOnAndNothingIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour, takes: 2 * time.Second}, nil)
		ctx, leave := context.WithCancel(t.Context())
		leave()
		if _, err := b.Token(ctx, as("a", "r")); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		b.want(as("b", "r"), "#1")
	})
}

func TestNobodyWaitsLongerThanAFewSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour, takes: 12 * time.Second}, nil)
		start := time.Now()
		b.refused(as("a", "r"), v1.ReasonUpstreamUnavailable)
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("told after %s", took)
		}
		b.refused(as("a", "r"), v1.ReasonUpstreamUnavailable)
		b.want(as("a", "r"), "#1") // the call went on
	})
}

func TestTokensAreServedUntilShortlyBeforeTheirEnd(t *testing.T) {
	for name, test := range map[string]struct {
		life, later time.Duration
		answer      string
	}{
		"at once":                        {24 * time.Hour, 0, "#1"},
		"before the margin":              {24 * time.Hour, 23*time.Hour + 54*time.Minute, "#1"},
		"within the margin":              {24 * time.Hour, 23*time.Hour + 56*time.Minute, "#2"},
		"after its end":                  {24 * time.Hour, 25 * time.Hour, "#2"},
		"a short life, first quarters":   {4 * time.Minute, 2 * time.Minute, "#1"},
		"a short life, the last quarter": {4 * time.Minute, 3*time.Minute + time.Second, "#2"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &upstream{life: test.life}, nil)
				b.want(as("a", "r"), "#1")
				b.end("a") // so that the token is not replaced ahead of its end
				pass(test.later)
				b.want(as("b", "r"), test.answer)
			})
		})
	}
}

func TestATokenOutlivesUpstreamWhileItIsGood(t *testing.T) {
	reason := func(r v1.Reason) func(context.Context, tokensource.Request) error {
		return func(context.Context, tokensource.Request) error { return refusal.New(r, "no") }
	}
	hangs := func(ctx context.Context, _ tokensource.Request) error { <-ctx.Done(); return down() }
	for name, test := range map[string]struct {
		answer func(context.Context, tokensource.Request) error
		left   time.Duration
		want   v1.Reason
	}{
		"upstream is down":                     {reason(v1.ReasonUpstreamUnavailable), time.Minute, ""},
		"upstream throttles":                   {reason(v1.ReasonUpstreamThrottled), time.Minute, ""},
		"upstream hangs":                       {hangs, time.Minute, ""},
		"upstream refuses":                     {reason(v1.ReasonUpstreamRefused), time.Minute, ""},
		"upstream refuses and the token ended": {reason(v1.ReasonUpstreamRefused), -time.Minute, v1.ReasonUpstreamRefused},
		"upstream is down and the token ended": {reason(v1.ReasonUpstreamUnavailable), -time.Minute, v1.ReasonUpstreamUnavailable},
		"upstream is down, seconds left":       {reason(v1.ReasonUpstreamUnavailable), 5 * time.Second, v1.ReasonUpstreamUnavailable},
		"the source panics":                    {func(context.Context, tokensource.Request) error { panic("mistake") }, -time.Minute, v1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &upstream{life: time.Hour}, nil)
				b.want(as("a", "r"), "#1")
				b.end("a")
				b.upstream.answersBy(test.answer)
				pass(time.Hour - test.left)
				for range 3 {
					start := time.Now()
					got, why := b.get(as("b", "r"))
					if why != test.want || (why == "") != (got == "#1") {
						t.Errorf("got %q %s", got, why)
					}
					if took := time.Since(start); took > time.Second && test.want == "" {
						t.Errorf("took %s", took)
					}
				}
			})
		})
	}
}

func TestAFailedReplacementIsNotTriedByEveryRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour}, nil)
		b.want(as("a", "r"), "#1")
		b.end("a")
		b.upstream.answers(down())
		pass(57 * time.Minute)
		for range 100 {
			b.want(as("b", "r"), "#1")
		}
		if got := b.upstream.calls(); got != 2 {
			t.Errorf("%d calls, want the first and one in vain", got)
		}
	})
}

func TestFailuresAreRememberedByTheirClass(t *testing.T) {
	status := func(status int, words string) error {
		out := refusal.New(v1.ReasonUpstreamRefused, "no")
		out.Err = &imds.RefusedError{Status: status, Description: words}
		return out
	}
	for name, test := range map[string]struct {
		err  error
		life time.Duration
	}{
		"the identity is not there":     {status(400, "Identity not found"), 5 * time.Second},
		"the Secret is not there":       {refusal.New(v1.ReasonSecretNotFound, "no"), 5 * time.Second},
		"the credential is wrong":       {status(401, "no"), 15 * time.Second},
		"Entra refuses":                 {refusal.New(v1.ReasonUpstreamRefused, "no"), 15 * time.Second},
		"the authority is forbidden":    {refusal.New(v1.ReasonAuthorityForbidden, "no"), 15 * time.Second},
		"nobody knows the resource":     {status(400, "AADSTS500011"), 30 * time.Second},
		"upstream is down":              {down(), time.Second},
		"upstream throttles":            {refusal.New(v1.ReasonUpstreamThrottled, "no"), time.Second},
		"upstream throttles for a bit":  {&refusal.Error{Reason: v1.ReasonUpstreamThrottled, After: 7 * time.Second}, 7 * time.Second},
		"upstream throttles for long":   {&refusal.Error{Reason: v1.ReasonUpstreamThrottled, After: time.Hour}, 30 * time.Second},
		"the agent made a mistake":      {errors.New("broken"), time.Second},
		"the type has no source at all": {refusal.New(v1.ReasonUnsupportedIdentityType, "no"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBenchWithin(t, &upstream{life: time.Hour}, unlimited(), nil)
				b.upstream.answers(test.err)
				want := refusal.Of(test.err).Reason
				for b.upstream.calls() == 0 || want == v1.ReasonUpstreamThrottled && b.upstream.calls() < 4 && b.observed()[cache.Miss] == 0 {
					b.get(as("a", "r"))
				}
				asked := b.upstream.calls()
				b.upstream.answers(nil)
				if test.life > 0 {
					pass(test.life - 10*time.Millisecond)
					b.refused(as("b", "r"), want)
				}
				if got := b.upstream.calls(); got != asked {
					t.Errorf("asked again within %s", test.life)
				}
				pass(time.Minute) // a budget that was told to wait is over it, too
				b.get(as("b", "r"))
				if got := b.upstream.calls(); got != asked+1 {
					t.Errorf("%d calls when the failure was old, want %d", got, asked+1)
				}
			})
		})
	}
}

func TestARememberedFailureSaysHowLongItIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour}, nil)
		b.upstream.answers(&refusal.Error{Reason: v1.ReasonUpstreamRefused, After: 10 * time.Second})
		b.refused(as("a", "r"), v1.ReasonUpstreamRefused)
		pass(9 * time.Second)
		_, err := b.Token(t.Context(), as("a", "r"))
		if got := refusal.Of(err).After; got != 6*time.Second {
			t.Errorf("told to wait %s", got)
		}
	})
}

func TestUpstreamBeingUpdatedIsAskedAgainWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour}, nil)
		b.upstream.answers(refusal.New(v1.ReasonUpstreamUpdating, "updating"))
		time.AfterFunc(2*time.Second, func() { b.upstream.answers(nil) })
		start := time.Now()
		b.want(as("a", "r"), "#3")
		if took := time.Since(start); took != 3*time.Second { // at 0, 1 and 3 seconds
			t.Errorf("took %s", took)
		}
		b.upstream.answers(refusal.New(v1.ReasonUpstreamUpdating, "updating"))
		b.refused(as("a", "other"), v1.ReasonUpstreamUnavailable)
		pass(time.Minute)
		if got := b.upstream.calls(); got > 7 {
			t.Errorf("%d calls: it is asked on and on for nobody", got)
		}
	})
}

func TestThrottledRequestsGetTheirTurnWhenThePauseIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour}, nil)
		first := true
		b.upstream.answersBy(func(context.Context, tokensource.Request) error {
			if first {
				first = false
				return &refusal.Error{Reason: v1.ReasonUpstreamThrottled, After: 3 * time.Second}
			}
			return nil
		})
		start := time.Now()
		b.want(as("a", "r"), "#2")
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestBypassAsksUpstreamAtMostOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, &upstream{life: time.Hour, takes: 100 * time.Millisecond}, nil)
		b.want(as("a", "r"), "#1")
		b.want(fresh(as("a", "r")), "#2")
		for range 1000 {
			b.want(fresh(as("b", "r")), "#2")
		}
		pass(time.Minute)
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() { b.want(fresh(as("c", "r")), "#3") })
		}
		group.Go(func() {
			if got, _ := b.get(as("plain", "r")); got == "" {
				t.Error("a request that bypasses nothing was refused")
			}
		})
		group.Wait()
		b.want(as("d", "r"), "#3")
		if b.upstream.calls() != 3 || b.upstream.asked[0].Fresh || !b.upstream.asked[1].Fresh || !b.upstream.asked[2].Fresh {
			t.Errorf("asked %d times: %+v", b.upstream.calls(), b.upstream.asked)
		}
		b.upstream.answers(down())
		pass(time.Minute)
		b.want(fresh(as("a", "r")), "#3") // what there is, since it is good
	})
}

// Requests that differ in anything never share a token, and those that Azure
// takes for the same always do.
func TestWhatSharesATokenAndWhatDoesNot(t *testing.T) {
	base := func() tokensource.Request {
		clientID, err := identity.ParseClientID("c")
		if err != nil {
			t.Fatal(err)
		}
		return tokensource.Request{Resource: "https://r", Identity: identity.Identity{
			Key: identity.Key{Namespace: "ns", Name: "id"}, Kind: identity.ServicePrincipal, ClientID: clientID, TenantID: "t", Authority: "https://a",
		}}
	}
	for name, test := range map[string]struct {
		change func(*tokensource.Request)
		shares bool
	}{
		"the same":                        {func(*tokensource.Request) {}, true},
		"the tenant in another case":      {func(r *tokensource.Request) { r.Identity.TenantID = "T" }, true},
		"the authority in another case":   {func(r *tokensource.Request) { r.Identity.Authority = "HTTPS://A" }, true},
		"the client ID in another case":   {func(r *tokensource.Request) { r.Identity.ClientID, _ = identity.ParseClientID("C") }, true},
		"another resource":                {func(r *tokensource.Request) { r.Resource = "https://r/" }, false},
		"another credential version":      {func(r *tokensource.Request) { r.Version = "2" }, false},
		"another tenant":                  {func(r *tokensource.Request) { r.Identity.TenantID = "u" }, false},
		"another authority":               {func(r *tokensource.Request) { r.Identity.Authority = "https://b" }, false},
		"another kind":                    {func(r *tokensource.Request) { r.Identity.Kind = identity.ManagedIdentity }, false},
		"another client ID":               {func(r *tokensource.Request) { r.Identity.ClientID, _ = identity.ParseClientID("d") }, false},
		"another Secret":                  {func(r *tokensource.Request) { r.Identity.Credential.Name = "s" }, false},
		"federated":                       {func(r *tokensource.Request) { r.Identity.Federated = true }, false},
		"a namesake of another namespace": {func(r *tokensource.Request) { r.Identity.Namespace = "other" }, false},
		"auxiliary tenants":               {func(r *tokensource.Request) { r.Identity.AuxiliaryTenants[0] = "x" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			changed := base()
			test.change(&changed)
			if got := changed.Canonical() == base().Canonical(); got != test.shares {
				t.Errorf("shares: %v", got)
			}
		})
	}
}

// The same at random, through the cache, many at a time.
func TestDifferentRequestsNeverShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBenchWithin(t, &upstream{life: time.Hour}, unlimited(), func(o *cache.Options) { o.Size = 20 })
		var group sync.WaitGroup
		for worker := range 8 {
			random := rand.New(rand.NewPCG(uint64(worker), 5))
			group.Go(func() {
				for range 500 {
					ask := anyAsk(random)
					token, err := b.Token(t.Context(), ask)
					if err != nil || !strings.HasPrefix(strings.ToLower(token.Value()), strings.ToLower(wanted(ask.Canonical()))+"#") {
						t.Errorf("asked for %s, got %q, %v", wanted(ask.Request), token.Value(), err)
					}
				}
			})
		}
		group.Wait()
	})
}

func anyAsk(random *rand.Rand) tokensource.Ask {
	pick := func(all ...string) string { return all[random.IntN(len(all))] }
	ask := as(pick("p", "q", "r"), pick("r", "r/", "R2"))
	ask.Version = pick("", "1", "2")
	id := &ask.Identity
	id.Key = identity.Key{Namespace: pick("a", "ab"), Name: pick("c", "bc")}
	id.Kind = identity.Kind(random.IntN(3))
	id.TenantID, id.Authority = pick("", "t", "T"), pick("", "x")
	id.Federated = random.IntN(2) == 0
	ask.Fresh = random.IntN(10) == 0
	if client, err := identity.ParseClientID(pick("x", "y", "X")); err == nil {
		id.ClientID = client
	}
	return ask
}
