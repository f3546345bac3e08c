package supply_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/supply"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
	"github.com/aad-pod-identity/aad-pod-identity/test/otlp"
)

// counts are Metrics that remember what waits, by upstream, and how the cache
// answered.
type counts struct {
	waiting map[string]func() int
	cached  map[string]int
}

func newCounts() *counts { return &counts{map[string]func() int{}, map[string]int{}} }

func (c *counts) AskedEntra(string, time.Duration)          {}
func (c *counts) APIFailed(string)                          {}
func (c *counts) Cached(result string)                      { c.cached[result]++ }
func (c *counts) Waiting(upstream string, count func() int) { c.waiting[upstream] = count }

func forwarded(route audit.Route, pod string) *audit.Record {
	return &audit.Record{Route: route, UID: types.UID(pod)}
}

// What is forwarded and stays under way takes no more than its part of the places
// that tokens need.
func TestForwardedRequestsLeavePlacesForTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := newCounts()
		paid := supply.NewOutbound(supply.Limits{TokensPerSecond: 1000, TokensAtOnce: 5, MetadataPerSecond: 1000}, metrics)
		var leave []func(bool, time.Duration)
		for _, pod := range []string{"a", "b"} {
			one, err := paid.Enter(t.Context(), forwarded(audit.RouteToken, pod))
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, one)
		}
		begin := time.Now()
		if _, err := paid.Enter(t.Context(), forwarded(audit.RouteToken, "c")); err == nil || refusal.Of(err).Reason != v1.ReasonLimited || time.Since(begin) != 5*time.Second {
			t.Errorf("a third of five places: %v after %s", err, time.Since(begin))
		}
		done, err := paid.Enter(t.Context(), forwarded(audit.RouteInstance, "c"))
		if err != nil {
			t.Errorf("metadata waits for tokens: %v", err)
		}
		done(false, 0)
		waited := make(chan error, 1)
		go func() {
			next, err := paid.Enter(t.Context(), forwarded(audit.RouteToken, "c"))
			if err == nil {
				next(false, 0)
			}
			waited <- err
		}()
		synctest.Wait()
		if got := metrics.waiting["imds_token"](); got != 1 || metrics.waiting["entra"]() != 0 {
			t.Errorf("%d are shown to wait", got)
		}
		for _, one := range leave {
			one(false, 0)
		}
		if err := <-waited; err != nil {
			t.Errorf("after the others have left: %v", err)
		}
	})
}

// source gives a token, but for what it must not.
type source struct{ asked int }

func (s *source) Token(_ context.Context, request tokensource.Request) (imds.Token, error) {
	s.asked++
	if request.Resource == "refused" {
		return imds.Token{}, refusal.New(v1.ReasonUpstreamRefused, "no")
	}
	return imds.NewToken("the-token", imds.Token{ExpiresOn: time.Now().Add(time.Hour)}), nil
}

// alive are pods that all run.
type alive struct{}

func (alive) Alive(identity.Key, types.UID) bool { return true }

func TestTheCacheStandsBeforeTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics, inner := newCounts(), &source{}
		tokens := supply.NewCache(inner, supply.NewOutbound(supply.Limits{TokensPerSecond: 20, TokensAtOnce: 5, MetadataPerSecond: 5}, metrics), alive{}, metrics)
		for range 10 {
			if _, err := tokens.Token(t.Context(), tokensource.Ask{Request: tokensource.Request{Resource: "r"}, UID: "u"}); err != nil {
				t.Fatal(err)
			}
		}
		if inner.asked != 1 || metrics.cached["hit"] != 9 || metrics.cached["miss"] != 1 {
			t.Errorf("%d requests upstream, %v", inner.asked, metrics.cached)
		}
	})
}

func TestRequestsUpstreamAreTraced(t *testing.T) {
	inner := &source{}
	if got := supply.Traced(inner, nil); got != tokensource.Source(inner) {
		t.Error("without a collector there is something around the source")
	}
	collector := otlp.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tracer, err := tracing.New(t.Context(), "s", "v", "n")
	if err != nil {
		t.Fatal(err)
	}
	traced := supply.Traced(inner, tracer)
	id := identity.Identity{Key: identity.Key{Namespace: "ns", Name: "i"}}
	token, err := traced.Token(t.Context(), tokensource.Request{Identity: id, Resource: "r"})
	if err != nil || token.ExpiresOn.IsZero() {
		t.Errorf("got %v, %v", token, err)
	}
	if _, err := traced.Token(t.Context(), tokensource.Request{Identity: id, Resource: "refused"}); err == nil || refusal.Of(err).Reason != v1.ReasonUpstreamRefused {
		t.Errorf("got %v", err)
	}
	if err := tracer.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spans := collector.Spans()
	if len(spans) != 2 || spans[0].Attributes["podidentity.identity"] != "ns/i" || spans[0].Failed != "" || spans[1].Failed != "UpstreamRefused" || spans[0].Kind != "SPAN_KIND_CLIENT" {
		t.Errorf("got %+v", spans)
	}
}
