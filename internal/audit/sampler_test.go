package audit_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
)

func TestACallerAtALimitGetsALineAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sampler := audit.NewSampler()
		remote := netip.MustParseAddr("10.0.0.1")
		lines := func(reason v1.Reason, from netip.Addr, n int) int {
			out := 0
			for range n {
				if sampler.Worth(&audit.Record{Reason: reason, Remote: from}) {
					out++
				}
			}
			return out
		}
		for _, step := range []struct {
			name   string
			reason v1.Reason
			from   netip.Addr
			after  time.Duration
			want   int
		}{
			{"what is decided otherwise is always worth one", v1.ReasonIssued, remote, 0, 100},
			{"the first of many", v1.ReasonLimited, remote, 0, 1},
			{"those that follow", v1.ReasonLimited, remote, 59 * time.Second, 0},
			{"another caller's first", v1.ReasonLimited, netip.MustParseAddr("10.0.0.2"), 0, 1},
			{"the next minute", v1.ReasonLimited, remote, time.Second, 1},
		} {
			<-time.After(step.after)
			if got := lines(step.reason, step.from, 100); got != step.want {
				t.Errorf("%s: %d lines, want %d", step.name, got, step.want)
			}
		}
		for n := range 3000 {
			lines(v1.ReasonLimited, netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 1)
		}
		if got := lines(v1.ReasonLimited, netip.AddrFrom4([4]byte{10, 1, 0xb, 0xb7}), 1); got != 0 {
			t.Error("the latest caller was forgotten")
		}
	})
}
