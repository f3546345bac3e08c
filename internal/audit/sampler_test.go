package audit_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
)

func TestWhatWasJustSaidIsNotSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sampler := audit.NewSampler(10 * time.Second)
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
			{"what is refused for another reason is always worth one", v1.ReasonNotBound, remote, 0, 100},
			{"a token", v1.ReasonIssued, remote, 0, 1},
			{"a token, again", v1.ReasonIssued, remote, 9 * time.Second, 0},
			{"a token, later", v1.ReasonIssued, remote, time.Second, 1},
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
		for n := range 10000 {
			lines(v1.ReasonLimited, netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 1)
		}
		if got := lines(v1.ReasonLimited, netip.AddrFrom4([4]byte{10, 1, 9999 >> 8, 9999 & 0xff}), 1); got != 0 {
			t.Error("the latest caller was forgotten")
		}
	})
}

func TestATokenIsTheSameOnlyForTheSameQuestion(t *testing.T) {
	sampler := audit.NewSampler(time.Hour)
	base := audit.Record{Reason: v1.ReasonIssued, UID: "u", Resource: "r"}
	if !sampler.Worth(&base) || sampler.Worth(&base) {
		t.Fatal("the first is worth a line, the second none")
	}
	for name, change := range map[string]func(*audit.Record){
		"another pod":      func(r *audit.Record) { r.UID = "v" },
		"another identity": func(r *audit.Record) { r.Identity.Name = "i" },
		"another resource": func(r *audit.Record) { r.Resource = "s" },
	} {
		other := base
		change(&other)
		if !sampler.Worth(&other) {
			t.Errorf("%s is worth no line", name)
		}
	}
	all := audit.NewSampler(0)
	for range 2 {
		if !all.Worth(&base) {
			t.Error("a line was left out although all are wanted")
		}
	}
}
