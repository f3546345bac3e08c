package limit_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/limit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

// met counts which limits were met.
type met struct {
	mu     sync.Mutex // protects limits
	limits map[limit.Limit]int
}

func (m *met) observe(l limit.Limit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limits == nil {
		m.limits = map[limit.Limit]int{}
	}
	m.limits[l]++
}

func (m *met) all() map[limit.Limit]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.limits)
}

// enter lets n requests of a caller in and returns how to end those that were let
// in.
func enter(t *testing.T, l *limit.Limiter, from, n int) []func() {
	t.Helper()
	var in []func()
	for range n {
		leave, err := l.Enter(address(from))
		if err == nil {
			in = append(in, leave)
			continue
		}
		refused := refusal.Of(err)
		if refused.Reason != v1.ReasonLimited || refused.After != time.Second || !strings.Contains(refused.Message, "try again") {
			t.Errorf("refused with %+v", refused)
		}
	}
	return in
}

func leave(in []func()) {
	for _, leave := range in {
		leave()
	}
}

func TestLimits(t *testing.T) {
	options := limit.Options{PerSecond: 10, AtOnce: 4, AllAtOnce: 6, Callers: 3}
	for name, test := range map[string]struct {
		do   func(t *testing.T, l *limit.Limiter) int // returns how many were let in
		want int
		met  map[limit.Limit]int
	}{
		"one caller, at once": {func(t *testing.T, l *limit.Limiter) int { return len(enter(t, l, 1, 10)) }, 4, map[limit.Limit]int{limit.AtOnce: 6}},
		"one caller, one after the other": {func(t *testing.T, l *limit.Limiter) int {
			n := 0
			for range 50 {
				in := enter(t, l, 1, 1)
				leave(in)
				n += len(in)
			}
			return n
		}, 20, map[limit.Limit]int{limit.Rate: 30}},
		"one caller, evenly": {func(t *testing.T, l *limit.Limiter) int {
			n := 0
			for range 100 {
				in := enter(t, l, 1, 1)
				leave(in)
				n += len(in)
				<-time.After(100 * time.Millisecond)
			}
			return n
		}, 100, nil},
		"one caller, and another": {func(t *testing.T, l *limit.Limiter) int {
			enter(t, l, 1, 100)
			return len(enter(t, l, 2, 2))
		}, 2, map[limit.Limit]int{limit.AtOnce: 96}},
		"all together, those that have some": {func(t *testing.T, l *limit.Limiter) int {
			enter(t, l, 1, 4)
			return len(enter(t, l, 2, 4))
		}, 2, map[limit.Limit]int{limit.AllAtOnce: 2}},
		"all together, one that has none": {func(t *testing.T, l *limit.Limiter) int {
			enter(t, l, 1, 4)
			enter(t, l, 2, 2)
			return len(enter(t, l, 3, 2))
		}, 1, map[limit.Limit]int{limit.AllAtOnce: 1}},
		"more callers than are told apart": {func(t *testing.T, l *limit.Limiter) int {
			leave(enter(t, l, 1, 1))
			leave(enter(t, l, 2, 1))
			leave(enter(t, l, 3, 1))
			return len(enter(t, l, 4, 2)) + len(enter(t, l, 5, 4))
		}, 4, map[limit.Limit]int{limit.AtOnce: 2}},
		"more callers, after a while": {func(t *testing.T, l *limit.Limiter) int {
			for caller := range 100 {
				leave(enter(t, l, caller, 1))
				<-time.After(time.Second)
			}
			return len(enter(t, l, 200, 4))
		}, 4, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var m met
				options := options
				options.Observe = m.observe
				if got := test.do(t, limit.New(options)); got != test.want {
					t.Errorf("%d were let in, want %d", got, test.want)
				}
				if diff := cmp.Diff(test.met, m.all()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// Whatever many callers do, none has more under way than it may, nor all of them,
// and when all is over nothing is left.
func TestManyCallersAtOnce(t *testing.T) {
	l := limit.New(limit.Options{PerSecond: 1 << 20, AtOnce: 3, AllAtOnce: 10})
	var mu sync.Mutex
	running, all := map[int]int{}, 0
	var group sync.WaitGroup
	for worker := range 64 {
		group.Go(func() {
			from := worker % 8
			for range 500 {
				leave, err := l.Enter(address(from))
				if err != nil {
					continue
				}
				mu.Lock()
				running[from]++
				all++
				if running[from] > 3 || all > 10+8 {
					t.Errorf("%d of one caller, %d of all", running[from], all)
				}
				running[from]--
				all--
				mu.Unlock()
				leave()
			}
		})
	}
	group.Wait()
	for from := range 3 {
		if got := len(enter(t, l, from, 5)); got != 3 {
			t.Errorf("afterwards %d of 3 were let in", got)
		}
	}
}

// loopback listens with a bound of connections.
func loopback(t *testing.T, l *limit.Limiter) net.Listener {
	t.Helper()
	inner, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := l.Listener(inner)
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func dial(t *testing.T, listener net.Listener, from string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestConnectionsOfOneCallerAreBounded(t *testing.T) {
	var m met
	listener := loopback(t, limit.New(limit.Options{Connections: 2, Observe: m.observe}))
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial(t, listener, "127.0.0.2")
	first := <-accepted
	dial(t, listener, "127.0.0.2")
	<-accepted
	refused := dial(t, listener, "127.0.0.2")
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("a third connection was not closed")
	} else if netErr, ok := errors.AsType[net.Error](err); !errors.Is(err, io.EOF) && (!ok || netErr.Timeout()) {
		t.Errorf("reading from it: %v", err)
	}
	dial(t, listener, "127.0.0.3")
	if c := <-accepted; !strings.HasPrefix(c.RemoteAddr().String(), "127.0.0.3") {
		t.Errorf("accepted %s", c.RemoteAddr())
	}
	for range 2 { // twice gives one place back
		_ = first.Close()
	}
	dial(t, listener, "127.0.0.2")
	<-accepted
	dial(t, listener, "127.0.0.2")
	dial(t, listener, "127.0.0.4")
	if c := <-accepted; !strings.HasPrefix(c.RemoteAddr().String(), "127.0.0.4") {
		t.Errorf("a connection too many was accepted: %s", c.RemoteAddr())
	}
	if got := fmt.Sprint(m.all()); got != "map[connections:2]" {
		t.Errorf("met %s", got)
	}
}

func BenchmarkEnter(b *testing.B) {
	l := limit.New(limit.Options{PerSecond: 1 << 40})
	b.ReportAllocs()
	for b.Loop() {
		leave, err := l.Enter(address(1))
		if err != nil {
			b.Fatal(err)
		}
		leave()
	}
}
