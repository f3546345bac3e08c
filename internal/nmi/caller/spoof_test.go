package caller_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/connected"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
	"github.com/aad-pod-identity/aad-pod-identity/test/spoof"
)

// site is a node in a namespace, with a server that tells each caller who it is
// taken for.
type site struct {
	*testing.T
	node  *netns.NS
	index *caller.Index
	table *link.Table
	known connected.Set
	port  uint16
	pods  int
}

// newSite makes a node. With prove, callers are proven by its links.
func newSite(t *testing.T, prove bool) *site {
	t.Helper()
	s := &site{T: t, node: netns.ForTest(t, "node"), index: caller.NewIndex(node, 50*time.Millisecond)}
	s.must(s.node.SetSysctl("net.ipv4.ip_forward", "1"))
	if prove {
		s.watch()
	}
	listener, err := s.node.Listen(t.Context(), "tcp4", "0.0.0.0:0")
	s.must(err)
	s.port = listener.Addr().(*net.TCPAddr).AddrPort().Port()
	group, ctx := errgroup.WithContext(t.Context())
	known := s.known.Listener(listener)
	group.Go(func() error { return s.serve(ctx, known) })
	t.Cleanup(func() {
		_ = listener.Close()
		if err := group.Wait(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

// watch opens the node's tables and keeps them told.
func (s *site) watch() {
	s.must(s.node.Do(func() (err error) {
		s.table, err = link.Open(link.Options{Observe: s.index.Observe})
		return err
	}))
	s.index.Prove(caller.Proofs{Paths: s.table, Lost: func(address netip.Addr, _ caller.Cause) { s.known.Drop(address) }})
	var group errgroup.Group
	ctx, cancel := context.WithCancel(s.Context())
	group.Go(func() error { return s.table.Run(ctx, s.index.Tie) })
	s.Cleanup(func() {
		cancel()
		if err := errors.Join(group.Wait(), s.table.Close()); err != nil {
			s.Error(err)
		}
	})
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// serve answers every line of a connection with the name of the pod behind it, or
// with ! and the Reason why there is none.
func (s *site) serve(ctx context.Context, listener net.Listener) error {
	for {
		c, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				pod, err := s.index.Lookup(ctx, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
				answer := pod.Name
				if err != nil {
					answer = "!" + string(reasonOf(err))
				}
				if _, err := io.WriteString(c, answer+"\n"); err != nil {
					return
				}
			}
		}()
	}
}

// ask asks from a pod who it is; an empty answer means that there was none.
func (s *site) ask(from *netns.NS, server string) string {
	ctx, cancel := context.WithTimeout(s.Context(), 400*time.Millisecond)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", server, s.port))
	if err != nil {
		return ""
	}
	defer c.Close()
	return converse(c)
}

// meet is ask for a pod that is new: its link carries nothing for up to a second.
func (s *site) meet(from *netns.NS, server string) string {
	for range 10 {
		if got := s.ask(from, server); got != "" {
			return got
		}
	}
	return ""
}

func converse(c net.Conn) string {
	_ = c.SetDeadline(time.Now().Add(400 * time.Millisecond))
	if _, err := io.WriteString(c, "who\n"); err != nil {
		return ""
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return ""
	}
	return line[:len(line)-1]
}

const bridgeIP = "10.0.0.1"

// onBridge makes a pod on the node's bridge br0.
func (s *site) onBridge(name, ip string) *netns.NS {
	s.Helper()
	s.pods++
	out := netns.ForTest(s.T, name)
	s.must(netns.Connect(
		netns.End{NS: s.node, Link: fmt.Sprint("veth", s.pods), Bridge: "br0"},
		netns.End{NS: out, Link: "eth0", Addr: netip.PrefixFrom(netip.MustParseAddr(ip), 24)}))
	return out
}

// own makes a pod with a link of its own, to which the node has a route.
func (s *site) own(name, ip string) (*netns.NS, func()) {
	s.Helper()
	s.pods++
	out := netns.ForTest(s.T, name)
	near, far := netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr(ip)
	end := fmt.Sprint("veth", s.pods)
	s.must(netns.Connect(
		netns.End{NS: s.node, Link: end, Addr: netip.PrefixFrom(near, 31)},
		netns.End{NS: out, Link: "eth0", Addr: netip.PrefixFrom(far, 31)}))
	return out, func() { s.must(s.node.DeleteLink(end)) }
}

// spoofer is a pod that takes addresses of its neighbours.
type spoofer struct {
	*site
	*spoof.Spoofer

	ns *netns.NS
}

func (s *site) spoofer(ns *netns.NS, own string) *spoofer {
	s.Helper()
	out, err := spoof.New(ns, "eth0", netip.MustParsePrefix(own))
	s.must(err)
	s.Cleanup(func() { s.must(out.Close()) })
	return &spoofer{site: s, Spoofer: out, ns: ns}
}

// spoof has the spoofer ask in the victim's name a number of times, and returns the
// answers. At every step the victim may speak, too.
func (a *spoofer) spoof(random *rand.Rand, victim *netns.NS, address netip.Addr) map[string]int {
	answers := map[string]int{}
	for range 15 {
		a.must(a.Claim(address))
		if random.IntN(3) == 0 {
			answers["victim: "+a.ask(victim, bridgeIP)]++
		}
		answers[a.ask(a.ns, bridgeIP)]++
	}
	return answers
}

// A pod that takes its neighbour's address on a bridge, by ARP or by the MAC as
// well, is answered by the node, and never as its neighbour. Without proof it is.
func TestSpoofingOnARealBridge(t *testing.T) {
	for name, test := range map[string]struct {
		prove, mac bool
		taken      bool // whether the neighbour's identity can be had
	}{
		"by ARP":                {true, false, false},
		"by ARP and MAC":        {true, true, false},
		"by ARP, without proof": {false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, test.prove)
			s.must(s.node.AddBridge("br0", netip.MustParsePrefix(bridgeIP+"/24")))
			// Otherwise the first who answers is believed for a second.
			s.must(s.node.SetSysctl("net/ipv4/neigh/br0/locktime", "0"))
			victim, other := s.onBridge("victim", "10.0.0.2"), s.onBridge("spoofer", "10.0.0.3")
			set(t, s.index, pod("victim", "10.0.0.2"), pod("spoofer", "10.0.0.3"))
			if got := s.meet(victim, bridgeIP); got != "victim" {
				t.Fatalf("the victim is taken for %q", got)
			}
			if got := s.meet(other, bridgeIP); got != "spoofer" {
				t.Fatalf("the spoofer is taken for %q", got)
			}
			a := s.spoofer(other, "10.0.0.3/24")
			if test.mac {
				mac, err := spoof.MAC(victim, "eth0")
				s.must(err)
				s.must(a.TakeMAC(mac))
			}
			s.must(a.Take(netip.MustParsePrefix("10.0.0.2/24")))
			answers := a.spoof(rand.New(rand.NewPCG(1, 2)), victim, netip.MustParseAddr("10.0.0.2"))
			if (answers["victim"] > 0) != test.taken {
				t.Errorf("the spoofer was answered %v", answers)
			}
			if !test.taken && answers["!CallerMismatch"] == 0 {
				t.Errorf("the node was never taken in, so that nothing was shown: %v", answers)
			}
		})
	}
}

// A connection that was open when the address was taken ends.
func TestAConnectionEndsWithItsProof(t *testing.T) {
	s := newSite(t, true)
	s.must(s.node.AddBridge("br0", netip.MustParsePrefix(bridgeIP+"/24")))
	s.must(s.node.SetSysctl("net/ipv4/neigh/br0/locktime", "0"))
	victim, other := s.onBridge("victim", "10.0.0.2"), s.onBridge("spoofer", "10.0.0.3")
	set(t, s.index, pod("victim", "10.0.0.2"), pod("spoofer", "10.0.0.3"))
	if v, a := s.meet(victim, bridgeIP), s.meet(other, bridgeIP); v != "victim" || a != "spoofer" {
		t.Fatalf("they are taken for %q and %q", v, a)
	}
	c, err := victim.DialContext(t.Context(), "tcp4", fmt.Sprintf("%s:%d", bridgeIP, s.port))
	s.must(err)
	defer c.Close()
	if got := converse(c); got != "victim" {
		t.Fatalf("the victim is taken for %q", got)
	}
	// A packet is taken in when the kernel comes to it.
	a, got := s.spoofer(other, "10.0.0.3/24"), "victim"
	for range 50 {
		s.must(a.Claim(netip.MustParseAddr("10.0.0.2")))
		if got = converse(c); got == "" {
			break
		}
	}
	if got != "" {
		t.Errorf("the connection went on: %q", got)
	}
}

// A pod that holds the address of one that is still to come is not taken for it:
// its link is older than that pod.
func TestAnAddressThatIsTakenAhead(t *testing.T) {
	s := newSite(t, true)
	s.must(s.node.AddBridge("br0", netip.MustParsePrefix(bridgeIP+"/24")))
	other := s.onBridge("spoofer", "10.0.0.3")
	a := s.spoofer(other, "10.0.0.3/24")
	s.must(a.Take(netip.MustParsePrefix("10.0.0.2/24")))
	if got := s.meet(other, bridgeIP); got != "!CallerUnknown" {
		t.Fatalf("got %q", got)
	}
	// The API tells whole seconds: this is the next one.
	started := time.Now().Add(time.Second)
	set(t, s.index, born(pod("victim", "10.0.0.2"), started, started))
	if got := s.ask(other, bridgeIP); got != "!CallerMismatch" {
		t.Errorf("got %q", got)
	}
}

// An address that is given out again at once, while the API still shows the pod
// that had it, for random times.
func TestAnAddressIsGivenOutAgainAtOnce(t *testing.T) {
	s := newSite(t, true)
	random := rand.New(rand.NewPCG(3, 4))
	var refused int
	for round := range 12 {
		before, after := fmt.Sprint("before-", round), fmt.Sprint("after-", round)
		first, end := s.own(before, "10.1.0.1")
		set(t, s.index, pod(before, "10.1.0.1"))
		if got := s.meet(first, "10.1.0.0"); got != before {
			t.Fatalf("round %d: %q", round, got)
		}
		end()
		second, over := s.own(after, "10.1.0.1")
		var told atomic.Bool
		late := time.AfterFunc(time.Duration(random.IntN(60))*time.Millisecond, func() {
			set(t, s.index, with(pod(before, "10.1.0.1"), func(p *corev1.Pod) { p.Labels["ending"] = "true" }))
			set(t, s.index, pod(after, "10.1.0.1"))
			told.Store(true)
		})
		for answered := false; !answered; {
			known := told.Load()
			switch got := s.ask(second, "10.1.0.0"); got {
			case after:
				answered = true
			case "!CallerUnknown", "":
				if !known {
					refused++
				}
			default:
				t.Fatalf("round %d: the successor is taken for %q", round, got)
			}
		}
		late.Stop()
		s.index.Delete(identity.Key{Namespace: "ns", Name: before})
		s.index.Delete(identity.Key{Namespace: "ns", Name: after})
		over()
	}
	if refused == 0 {
		t.Error("nobody asked before the API had told")
	}
}
