package selfprobe_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// world is a node between its pods, of which it has none, and the simulated
// metadata service.
type world struct {
	*testing.T
	node, azure *netns.NS
	leaks       *netns.Counter
	rules       *redirect.NFTables
	target      string // where the rules lead
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, node: netns.ForTest(t, "node"), azure: netns.ForTest(t, "azure")}
	imds := netip.MustParseAddr("169.254.169.254")
	w.must(w.node.SetSysctl("net.ipv4.ip_forward", "1"))
	w.must(netns.Connect(
		netns.End{NS: w.node, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.4/24")},
		netns.End{NS: w.azure, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.1/24")}))
	w.must(w.azure.AddAddr("eth0", netip.PrefixFrom(imds, 32)))
	w.must(w.node.SetRoute(netip.PrefixFrom(imds, 32), netip.MustParseAddr("10.0.0.1")))
	var err error
	w.leaks, err = w.azure.CountArrivals("eth0", imds)
	w.must(err)
	listener, err := w.azure.Listen(t.Context(), "tcp4", "169.254.169.254:80")
	w.must(err)
	t.Cleanup(func() { _ = listener.Close() })
	w.aim(false)
	return w
}

// aim sets where pods are led to.
func (w *world) aim(link bool) {
	w.Helper()
	w.target = netip.AddrPortFrom(redirect.DefaultAddress(link), 2579).String()
	var err error
	w.rules, err = redirect.New(redirect.Config{NetNS: w.node.FD(), UID: uint32(unix.Geteuid()), Link: link})
	w.must(err)
	_, err = w.rules.Prepare(w.Context())
	w.must(err)
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// prober opens a prober on the node, with the capabilities of the agent and no
// others.
func (w *world) prober() *selfprobe.Prober {
	w.Helper()
	var out *selfprobe.Prober
	w.must(w.asAgent(func() (err error) {
		out, err = selfprobe.Open(selfprobe.Options{Metadata: netip.MustParseAddrPort("169.254.169.254:80")})
		return err
	}))
	w.Cleanup(func() { w.must(out.Close()) })
	return out
}

// asAgent runs f on the node with NET_ADMIN and NET_RAW alone.
func (w *world) asAgent(f func() error) error {
	return w.node.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var before, after [2]unix.CapUserData
		if err := unix.Capget(&header, &before[0]); err != nil {
			return err
		}
		after = before
		after[0].Effective, after[1].Effective = 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW, 0
		if err := unix.Capset(&header, &after[0]); err != nil {
			return err
		}
		return errors.Join(f(), unix.Capset(&header, &before[0]))
	})
}

// ensure puts the rules in place, on the links that are there.
func (w *world) ensure() {
	w.Helper()
	_, err := w.rules.Ensure(w.Context())
	w.must(err)
}

// listen opens what the agent listens on.
func (w *world) listen() net.Listener {
	w.Helper()
	listener, err := w.node.Listen(w.Context(), "tcp4", w.target)
	w.must(err)
	w.Cleanup(func() { _ = listener.Close() })
	return listener
}

// tries has the prober try for a while.
func (w *world) tries(p *selfprobe.Prober, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	return p.Try(ctx)
}

// answered fails the test unless a try is answered. A link that is new carries
// nothing for up to a second.
func (w *world) answered(p *selfprobe.Prober) {
	w.Helper()
	if err := w.tries(p, 5*time.Second); err != nil {
		w.Errorf("not answered: %v", err)
	}
}

func (w *world) noLeaks() {
	w.Helper()
	count, err := w.leaks.Count()
	w.must(err)
	if count != 0 {
		w.Errorf("%d packets for the metadata address left the node", count)
	}
}

func TestAnsweredWhenAllIsRight(t *testing.T) {
	for name, link := range map[string]bool{"to loopback": false, "to a link of the agent's own": true} {
		t.Run(name, func(t *testing.T) { answeredWhenAllIsRight(t, link) })
	}
}

func answeredWhenAllIsRight(t *testing.T, link bool) {
	w := newWorld(t)
	w.aim(link)
	listener := w.listen()
	p := w.prober()
	w.ensure()
	for range 3 {
		w.answered(p)
	}
	// The listener is not troubled: every connection was broken off.
	w.must(listener.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond)))
	if c, err := listener.Accept(); err == nil {
		t.Errorf("a connection came through, from %s", c.RemoteAddr())
	}
	w.noLeaks()
}

// Whatever is missing shows, and shows no more when it is put right. Nothing
// leaves the node meanwhile.
func TestWhatIsMissingShows(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(w *world, listener net.Listener)
		mend   func(w *world)
		want   error
	}{
		"the rules": {
			func(w *world, _ net.Listener) { _, err := w.rules.Delete(w.Context()); w.must(err) },
			(*world).ensure, selfprobe.ErrSilent,
		},
		"the redirect's table, not the fence": {
			func(w *world, _ net.Listener) { w.deleteTable("aad-pod-identity") },
			(*world).ensure, selfprobe.ErrSilent,
		},
		"the listener": {
			func(_ *world, listener net.Listener) { _ = listener.Close() },
			func(w *world) { w.listen() }, selfprobe.ErrRefused,
		},
		"loopback for packets from outside": {
			func(w *world, _ net.Listener) {
				w.must(w.node.SetSysctl("net/ipv4/conf/"+selfprobe.Inner+"/route_localnet", "0"))
			},
			(*world).ensure, selfprobe.ErrSilent,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			listener := w.listen()
			p := w.prober()
			w.ensure()
			w.answered(p)
			test.damage(w, listener)
			if err := w.tries(p, time.Second); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			test.mend(w)
			w.answered(p)
			w.noLeaks()
		})
	}
}

func (w *world) deleteTable(name string) {
	w.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(w.node.FD()))
	w.must(err)
	conn.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	w.must(conn.Flush())
}

// Where the node has no rules at all and forwards, a SYN ends on it.
func TestNothingLeavesWithoutRules(t *testing.T) {
	w := newWorld(t)
	p := w.prober()
	for range 3 {
		if err := w.tries(p, 700*time.Millisecond); !errors.Is(err, selfprobe.ErrSilent) {
			t.Errorf("got %v", err)
		}
	}
	w.noLeaks()
}

func TestTheLinkGoesAndALeftOneIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.prober() // left behind
	p := w.prober()
	w.ensure()
	w.answered(p)
	w.must(p.Close())
	w.must(p.Close())
	for _, name := range []string{selfprobe.Inner, selfprobe.Outer} {
		if _, err := w.node.Index(name); err == nil {
			t.Errorf("link %s is still there", name)
		}
	}
}

func TestWithoutTheCapabilities(t *testing.T) {
	w := newWorld(t)
	err := w.node.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var before, none [2]unix.CapUserData
		if err := unix.Capget(&header, &before[0]); err != nil {
			return err
		}
		none = before
		none[0].Effective, none[1].Effective = 0, 0
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		_, err := selfprobe.Open(selfprobe.Options{Metadata: netip.MustParseAddrPort("169.254.169.254:80")})
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("got %v", err)
		}
		return unix.Capset(&header, &before[0])
	})
	w.must(err)
}
