package nmi

import (
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/options"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/predecessor"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// TestSurveysAreTold: what is found is said once, and so is its end.
func TestSurveysAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rule = "chain c of table t drops what pods send"
		surveys := make(chan survey, 5)
		for _, s := range []survey{
			{}, {old: predecessor.Found{Removed: true, Legacy: true}, shadows: []string{rule}, noIPv4: true},
			{old: predecessor.Found{Legacy: true}, shadows: []string{rule}, noIPv4: true}, {},
		} {
			surveys <- s
		}
		log := &lines{}
		r := &runner{
			config: options.Config{RuleInterval: time.Minute}, kept: make(chan struct{}), redirect: &fakeRedirect{surveys: surveys},
			log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key != slog.MessageKey {
					return slog.Attr{}
				}
				return a
			}})),
		}
		go r.survey(t.Context())
		<-time.After(time.Hour)
		if log.String() != "" || len(surveys) != 4 {
			t.Errorf("looked before the redirect was in place: %s", log.String())
		}
		close(r.kept)
		<-time.After(time.Hour)
		want := `msg="removed the chain of an old agent of AAD Pod Identity"
msg="legacy iptables has the chain of an old agent of AAD Pod Identity: enter the commands on the node"
msg="pods may get no tokens: a rule of somebody else's comes before the redirect"
msg="the node has no IPv4 address: pods without one get no tokens, since the metadata service speaks IPv4 alone"
msg="a rule that came before the redirect is gone"
`
		if diff := cmp.Diff(want, log.String()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestSurvey looks at real nodes.
func TestSurvey(t *testing.T) {
	dual := func(t *testing.T, n *netns.NS, addresses ...string) {
		t.Helper()
		if err := n.AddBridge("eth0", netip.MustParsePrefix(addresses[0])); err != nil {
			t.Fatal(err)
		}
		for _, address := range addresses[1:] {
			if err := n.AddAddr("eth0", netip.MustParsePrefix(address)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		prepare func(*testing.T, *netns.NS)
		want    survey
	}{
		"IPv4":       {func(t *testing.T, n *netns.NS) { dual(t, n, "10.0.0.4/24") }, survey{}},
		"dual-stack": {func(t *testing.T, n *netns.NS) { dual(t, n, "10.0.0.4/24", "fd00::4/64") }, survey{}},
		"IPv6 alone": {func(t *testing.T, n *netns.NS) { dual(t, n, "fd00::4/64") }, survey{noIPv4: true}},
		"an old agent and a drop": {
			func(t *testing.T, n *netns.NS) {
				dual(t, n, "10.0.0.4/24")
				for _, line := range []string{"-t nat -N aad-metadata", "-t raw -A PREROUTING -d 169.254.169.254 -j DROP"} {
					cmd := exec.CommandContext(t.Context(), "iptables-nft", strings.Fields(line)...)
					if err := n.Start(cmd); err != nil {
						t.Fatal(err)
					}
					if err := cmd.Wait(); err != nil {
						t.Fatal(err)
					}
				}
			},
			survey{old: predecessor.Found{Removed: true}, shadows: []string{"chain PREROUTING of table raw drops what pods send to 169.254.169.254:80"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := netns.ForTest(t, "node")
			test.prepare(t, n)
			config := redirect.Config{
				Metadata: netip.MustParseAddrPort("169.254.169.254:80"), Target: netip.MustParseAddrPort("169.254.255.79:2579"),
				Link: true, UID: uint32(unix.Geteuid()), Bound: true,
			}
			err := n.Do(func() error {
				d, err := newNFTables(config)
				if err != nil {
					return err
				}
				if _, err := d.Prepare(t.Context()); err != nil {
					return err
				}
				got, err := d.Survey()
				if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(survey{})); diff != "" {
					t.Error(diff)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSpeaksIPv4(t *testing.T) {
	own := redirect.Config{Link: true, Target: netip.MustParseAddrPort("169.254.255.79:2579")}
	of := redirect.Config{Target: netip.MustParseAddrPort("10.0.0.4:2579")}
	for name, test := range map[string]struct {
		address string
		config  redirect.Config
		want    bool
	}{
		"an address":                  {"10.0.0.4/24", of, true},
		"a link-local one":            {"169.254.3.4/16", own, true},
		"that of the agent's link":    {"169.254.255.79/32", own, false},
		"a target that the node has":  {"10.0.0.4/24", of, true},
		"loopback":                    {"127.0.0.1/8", of, false},
		"loopback of IPv6":            {"::1/128", of, false},
		"a link-local one of IPv6":    {"fe80::1/64", own, false},
		"an address of IPv6":          {"fd00::4/64", of, false},
		"one of IPv4, mapped to IPv6": {"::ffff:10.0.0.4/120", of, true},
	} {
		prefix := netip.MustParsePrefix(test.address)
		address := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		if got := speaksIPv4([]net.Addr{address}, test.config); got != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
	}
}
