package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// doorman lets some addresses in, and counts who is inside.
type doorman struct {
	refuse string
	inside atomic.Int32
	seen   atomic.Int32
}

func (d *doorman) Enter(remote netip.Addr) (func(), error) {
	if remote.String() == d.refuse {
		return nil, &refusal.Error{Reason: v1.ReasonLimited, Message: "too much", After: 1500 * time.Millisecond}
	}
	d.seen.Add(1)
	d.inside.Add(1)
	return func() { d.inside.Add(-1) }, nil
}

func TestACallerBeyondItsLimitsIsToldWhenToComeBack(t *testing.T) {
	d := &doorman{refuse: plainPod}
	b := newBench(t, func(o *Options) { o.Limits = d })
	for _, path := range []string{"/metadata/identity/oauth2/token?resource=r", "/metadata/instance", "/anything"} {
		response, body := b.send(plainPod, get(path))
		if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "2" || !strings.Contains(body, "too much (reason Limited)") {
			t.Errorf("%s: %s, Retry-After %s: %s", path, response.Status, response.Header.Get("Retry-After"), body)
		}
	}
	if response, _ := b.send(exceptedPod, get("/metadata/instance")); response.StatusCode != http.StatusTeapot {
		t.Errorf("another caller: %s", response.Status)
	}
	if d.seen.Load() != 1 || d.inside.Load() != 0 {
		t.Errorf("%d were let in, %d have not left", d.seen.Load(), d.inside.Load())
	}
}

// gate remembers who passed, and what was said when they left.
type gate struct {
	refuse    error
	callers   chan context.Context
	passed    chan audit.Route
	throttled chan bool
	after     chan time.Duration
}

func newGate() *gate {
	return &gate{callers: make(chan context.Context, 9), passed: make(chan audit.Route, 9), throttled: make(chan bool, 9), after: make(chan time.Duration, 9)}
}

func (g *gate) Enter(ctx context.Context, record *audit.Record) (func(bool, time.Duration), error) {
	if g.refuse != nil {
		return nil, g.refuse
	}
	g.callers <- ctx
	g.passed <- record.Route
	return func(throttled bool, after time.Duration) { g.throttled <- throttled; g.after <- after }, nil
}

func TestWhatIsForwardedPassesTheGate(t *testing.T) {
	for name, test := range map[string]struct {
		from, path string
		route      audit.Route
	}{
		"an excepted pod's token": {exceptedPod, "/metadata/identity/oauth2/token?resource=r", audit.RouteToken},
		"instance metadata":       {plainPod, "/metadata/instance", audit.RouteInstance},
		"what else there is":      {exceptedPod, "/metadata/scheduledevents", audit.RouteOther},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate()
			b := newBench(t, func(o *Options) { o.Gate = g })
			if response, _ := b.send(test.from, get(test.path)); response.StatusCode != http.StatusTeapot {
				t.Fatalf("answered %s", response.Status)
			}
			if route, throttled, after := <-g.passed, <-g.throttled, <-g.after; route != test.route || throttled || after != 0 {
				t.Errorf("passed as %s, throttled %v after %s", route, throttled, after)
			}
		})
	}
}

func TestAClosedGateForwardsNothing(t *testing.T) {
	g := newGate()
	g.refuse = &refusal.Error{Reason: v1.ReasonLimited, Message: "no turn", After: 3 * time.Second}
	b := newBench(t, func(o *Options) { o.Gate = g })
	response, _ := b.send(exceptedPod, get("/metadata/identity/oauth2/token?resource=r"))
	if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "3" || len(b.upstream) > 0 {
		t.Errorf("answered %s, forwarded %d", response.Status, len(b.upstream))
	}
	if response, _ := b.send(plainPod, get("/metadata/identity/oauth2/token?resource=r")); response.StatusCode != http.StatusOK {
		t.Errorf("a token of the agent's own: %s", response.Status)
	}
}

// A request that was forwarded counts until the service has answered it, also
// when the caller has left; and the service's complaint is passed on.
func TestTheGateKnowsHowItWent(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-answer
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	t.Cleanup(upstream.Close)
	g := newGate()
	b := newBench(t, func(o *Options) {
		o.Gate, o.Upstream = g, netip.MustParseAddrPort(strings.TrimPrefix(upstream.URL, "http://"))
	})
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(plainPod)}}
	connection, err := dialer.DialContext(t.Context(), "tcp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(connection, get("/metadata/instance")); err != nil {
		t.Fatal(err)
	}
	<-asked
	_ = connection.Close() // the caller leaves
	<-(<-g.callers).Done()
	close(answer)
	if throttled, after := <-g.throttled, <-g.after; !throttled || after != 7*time.Second {
		t.Errorf("throttled %v, after %s", throttled, after)
	}
}
