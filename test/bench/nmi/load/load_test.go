package load_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/nmi/load"
)

func TestQuantiles(t *testing.T) {
	hundred := make(load.Series, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for name, test := range map[string]struct {
		of   load.Series
		q    float64
		want float64
	}{
		"nothing":               {nil, 0.5, 0},
		"one":                   {load.Series{3}, 0.99, 3},
		"the median of three":   {load.Series{9, 1, 5}, 0.5, 5},
		"the median of a 100":   {hundred, 0.5, 50},
		"the 99th of a hundred": {hundred, 0.99, 99},
		"the least":             {hundred, 0, 1},
		"the most":              {hundred, 1, 100},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.of.Quantile(test.q); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestRatiosAreOfTheSameRounds(t *testing.T) {
	got := load.Series{2, 30, 5}.Over(load.Series{1, 10, 0})
	if len(got) != 2 || got[0] != 2 || got[1] != 3 {
		t.Errorf("got %v", got)
	}
}

// peer is a server that answers a path with its length, and refuses others.
func peer(t *testing.T, paths ...string) *load.Peer {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/busy") {
			w.Header().Set("Retry-After", "3")
			w.WriteHeader(http.StatusTooManyRequests)
		}
		_, _ = w.Write([]byte(r.URL.Path)) // a test that has ended reads nothing
	}))
	t.Cleanup(server.Close)
	return &load.Peer{
		Name: "peer", From: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")},
		Dial: func(ctx context.Context, from netip.Addr) (net.Conn, error) {
			dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
			return dialer.DialContext(ctx, "tcp", server.Listener.Addr().String())
		},
		Target: func(i int) string { return paths[i%len(paths)] }, Process: load.Process(os.Getpid()),
	}
}

func TestAnAnswerIsRead(t *testing.T) {
	p := peer(t, "/one", "/busy")
	if body, err := p.Fetch(t.Context(), 0); err != nil || string(body) != "/one" {
		t.Errorf("got %q, %v", body, err)
	}
	if _, err := p.Fetch(t.Context(), 1); err == nil {
		t.Error("a refusal was taken for an answer")
	}
	l, err := p.Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		got, err := l.Ask()
		if want := (load.Answer{Status: 429, Length: 5, After: 3 * time.Second}); err != nil || got != want {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func TestLoadsCountWhatCameBack(t *testing.T) {
	const length = 100 * time.Millisecond
	good, busy := peer(t, "/one"), peer(t, "/busy")
	closed, err := good.Closed(t.Context(), 4, length)
	if err != nil || closed.PerSecond < 10 || closed.Failures != 0 {
		t.Errorf("as fast as it answers: %+v, %v", closed, err)
	}
	if got, err := busy.Closed(t.Context(), 4, length); err != nil || got.Failures != 4 {
		t.Errorf("refused: %+v, %v", got, err)
	}
	flow := load.Flow{PerSecond: 200, Connections: 4, Length: length}
	if got, err := good.OpenLoop(t.Context(), flow); err != nil || len(got.Latencies) != 20 || got.Failures != 0 {
		t.Errorf("at a rate: %d answers, %d failures, %v", len(got.Latencies), got.Failures, err)
	}
	if got, err := busy.OpenLoop(t.Context(), flow); err != nil || got.Failures != 20 {
		t.Errorf("refused at a rate: %d failures, %v", got.Failures, err)
	}
}

func TestTheKernelKnowsOfAProcess(t *testing.T) {
	p := load.Process(os.Getpid())
	resident, anonymous, err := p.Memory()
	if err != nil || anonymous <= 1 || resident < anonymous {
		t.Errorf("%v MiB, %v anonymous, %v", resident, anonymous, err)
	}
	if _, err := p.CPU(); err != nil {
		t.Error(err)
	}
	if _, err := load.Process(-1).CPU(); err == nil {
		t.Error("a process that does not exist has used CPU")
	}
}
