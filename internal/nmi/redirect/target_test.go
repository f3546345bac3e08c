package redirect_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	testns "github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// newLinked is a world in which pods are led to a link of NMI's own.
func newLinked(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.aim(true)
	return w
}

// retarget is another agent on the node, or none yet, that leads pods elsewhere.
func (w *world) retarget(link bool) {
	w.Helper()
	w.aim(link)
	must2(w.datapath().Ensure(w.Context()))(w)
	w.must(w.datapath().Verify(w.Context()))
}

// change has something done to the node's links that NMI would not do.
func (w *world) change(do func(*nl.Handle, nl.Link) error) {
	w.Helper()
	handle := must2(nl.NewHandleAt(netns.NsHandle(w.node.FD()), unix.NETLINK_ROUTE))(w)
	defer handle.Close()
	link := must2(handle.LinkByName(ownlink.Name))(w)
	w.must(do(handle, link))
}

// linkAddress is an address with the length of its subnet.
func linkAddress(prefix string) *nl.Addr {
	addr, err := nl.ParseAddr(prefix)
	if err != nil {
		panic(err) // a constant of the test's
	}
	return addr
}

// TestTheLinkIsNMIsAlone: past the redirect nobody outside reaches its address,
// neither a pod nor a host of the node's network, and whatever of the tables is
// there.
func TestTheLinkIsNMIsAlone(t *testing.T) {
	w := newLinked(t)
	w.ensured()
	addr := netip.MustParseAddr(w.targetIP())
	w.must(w.azure.SetRoute(netip.PrefixFrom(addr, 32), netip.MustParseAddr("10.0.0.4")))
	w.serve(w.node, w.target, "nmi")
	w.serve(w.node, w.targetIP()+":8080", "other")
	w.hears(w.node, w.target, "nmi hears "+w.targetIP())
	for _, gone := range []string{"", mainTable, fenceTable} {
		if gone != "" {
			w.damageTable(gone, deleteTable)
		}
		for _, outside := range []*testns.NS{w.pod, w.azure} {
			w.refused(outside, w.target)
			w.refused(outside, w.targetIP()+":8080")
		}
	}
	w.damageTable(spareTable, deleteTable)
	w.hears(w.pod, w.target, "nmi hears "+podIP) // so it is the guard that refuses
	must2(w.datapath().Ensure(t.Context()))(w)

	arrived := must2(w.node.CountArrivals("vethpod", addr))(w)
	receiver := must2(w.node.ListenPacket(t.Context(), "udp4", w.targetIP()+":9"))(w)
	defer receiver.Close()
	for _, from := range []*testns.NS{w.pod, w.node} {
		c := must2(from.DialContext(t.Context(), "udp4", w.targetIP()+":9"))(w)
		must2(c.Write([]byte(from.Name())))(w)
		c.Close()
	}
	buffer := make([]byte, 100)
	if n, _, err := receiver.ReadFrom(buffer); err != nil || string(buffer[:n]) != w.node.Name() {
		t.Errorf("first came %q, %v, want what the node sent", buffer[:n], err)
	}
	if must2(arrived.Count())(w) == 0 {
		t.Error("nothing of the pod's arrived: this test proves nothing")
	}
}

// TestStrictReversePathFilters: NMI's link is neither where packets come from nor
// where they go, so that no setting of links is in the way.
func TestStrictReversePathFilters(t *testing.T) {
	for name, setting := range map[string]string{
		"strict": "rp_filter", "routes of links without a carrier are no routes": "ignore_routes_with_linkdown",
	} {
		t.Run(name, func(t *testing.T) {
			w := newLinked(t)
			for _, link := range []string{"all", "default", "vethpod", "eth0"} {
				w.must(w.node.SetSysctl("net.ipv4.conf."+link+"."+setting, "1"))
			}
			w.ensured()
			w.must(w.node.SetSysctl("net.ipv4.conf."+ownlink.Name+"."+setting, "1"))
			w.serve(w.node, w.target, "nmi")
			w.hears(w.pod, metadata, "nmi hears "+podIP)
			w.hears(w.addPod("late", "10.244.1.2"), metadata, "nmi hears 10.244.1.2")
			w.noLeaks()
		})
	}
}

// damagesOfTheLink are what others may do to it, and the words that say so.
func damagesOfTheLink() map[string]struct {
	do    func(*nl.Handle, nl.Link) error
	words string
} {
	return map[string]struct {
		do    func(*nl.Handle, nl.Link) error
		words string
	}{
		"deleted":  {func(h *nl.Handle, l nl.Link) error { return h.LinkDel(l) }, "missing"},
		"set down": {func(h *nl.Handle, l nl.Link) error { return h.LinkSetDown(l) }, "down"},
		"without its address": {func(h *nl.Handle, l nl.Link) error {
			return h.AddrDel(l, linkAddress(redirect.LinkAddress().String()+"/32"))
		}, "without its address"},
		"one address more": {func(h *nl.Handle, l nl.Link) error { return h.AddrAdd(l, linkAddress("192.0.2.7/24")) }, "has [192.0.2.7/24]"},
	}
}

func TestTheLinkIsRepaired(t *testing.T) {
	for name, harm := range damagesOfTheLink() {
		t.Run(name, func(t *testing.T) {
			w := newLinked(t)
			d := w.ensured()
			k := w.keep(d)
			w.serve(w.node, w.target, "nmi")
			w.hears(w.pod, metadata, "nmi hears "+podIP)
			for range 2 { // the listener is still the first one
				w.change(harm.do)
				got := k.next("a repair of the link", func(c redirect.Change) bool { return c.OwnLink != "" })
				if !strings.Contains(got.OwnLink, harm.words) || got.Rules {
					t.Errorf("repaired %+v, want words: %s", got, harm.words)
				}
				w.hears(w.pod, metadata, "nmi hears "+podIP)
			}
			w.noLeaks()
		})
	}
}

func TestVerifyDetectsDamageOfTheLink(t *testing.T) {
	for name, harm := range damagesOfTheLink() {
		t.Run(name, func(t *testing.T) {
			w := newLinked(t)
			d := w.ensured()
			w.change(harm.do)
			err := d.Verify(t.Context())
			if damage, ok := errors.AsType[*ownlink.DamageError](err); !ok || !strings.Contains(damage.What, harm.words) {
				t.Errorf("got %v, want a *DamageError with: %s", err, harm.words)
			}
		})
	}
}

// TestWithoutTheLinkNothingLeavesTheNode: while the redirect leads to an address
// that the node does not have, pods' requests end on the node, which has a way for
// them elsewhere.
func TestWithoutTheLinkNothingLeavesTheNode(t *testing.T) {
	w := newLinked(t)
	d := w.ensured()
	addr := netip.MustParseAddr(w.targetIP())
	w.must(w.node.SetRoute(netip.PrefixFrom(addr, 32), netip.MustParseAddr("10.0.0.1")))
	w.must(w.azure.AddAddr("eth0", netip.PrefixFrom(addr, 32)))
	w.serve(w.azure, w.target, "impostor")
	strayed := must2(w.azure.CountArrivals("eth0", addr))(w)
	w.change(func(h *nl.Handle, l nl.Link) error { return h.LinkDel(l) })
	w.silent(w.node, w.target) // the guard stops the answer
	before := must2(strayed.Count())(w)
	if before == 0 {
		t.Error("there is no way elsewhere: this test proves nothing")
	}
	w.silent(w.pod, metadata)
	if after := must2(strayed.Count())(w); after != before {
		t.Errorf("%d packets went elsewhere", after-before)
	}
	w.noLeaks()
	must2(d.Ensure(t.Context()))(w)
	w.serve(w.node, w.target, "nmi")
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}

// TestChangingTheTarget: what an earlier target needed goes, and no guard goes
// before what it guards.
func TestChangingTheTarget(t *testing.T) {
	w := newWorld(t)
	w.trackConnections()
	for range 2 {
		w.retarget(false)
		w.opened("1", "eth0", "vethpod")
		if w.hasOwnLink() {
			t.Error("a link of NMI's own is left though pods are led to loopback")
		}
		nmi := w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
		nmi.Close()

		w.retarget(true)
		w.opened("0", "eth0", "vethpod")
		nmi = w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
		nmi.Close()
	}
	w.noLeaks()
}

// TestLeavingLoopback: links that were opened are closed by whatever comes after
// loopback, a crash between tables included.
func TestLeavingLoopback(t *testing.T) {
	for name, config := range map[string]redirect.Config{
		"for a link":                 {Link: true},
		"for an address of the node": {Target: netip.MustParseAddrPort("10.0.0.4:2579")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ensured()
			w.opened("1", "eth0", "vethpod")
			w.damageTable(mainTable, deleteTable)
			w.damageTable(fenceTable, deleteTable)
			config.NetNS = w.node.FD()
			d := must2(redirect.New(config))(w)
			change := must2(d.Ensure(t.Context()))(w)
			if change.Links != 2 {
				t.Errorf("got %+v, want two links closed", change)
			}
			w.opened("0", "eth0", "vethpod")
			w.must(w.node.SetSysctl("net.ipv4.conf.vethpod.route_localnet", "1"))
			if change := must2(d.Ensure(t.Context()))(w); !change.IsZero() {
				t.Errorf("what others do to links is their business: %+v", change)
			}
		})
	}
}

// TestAConnectionToAnEarlierTarget is forgotten: nobody is there any more.
func TestAConnectionToAnEarlierTarget(t *testing.T) {
	w := newWorld(t)
	w.ensured()
	l := must2(w.node.Listen(t.Context(), "tcp4", w.target))(w)
	defer l.Close()
	c := must2(w.pod.DialContext(t.Context(), "tcp4", metadata))(w)
	defer c.Close()
	w.aim(true)
	if change := must2(w.datapath().Ensure(t.Context()))(w); change.Flows != 1 {
		t.Errorf("got %+v, want one connection forgotten", change)
	}
}

// TestAnotherAddressOfTheLink: a change of the address replaces the old one.
func TestAnotherAddressOfTheLink(t *testing.T) {
	w := newLinked(t)
	w.ensured()
	d := must2(redirect.New(redirect.Config{NetNS: w.node.FD(), Link: true, Target: netip.MustParseAddrPort("169.254.7.9:2579")}))(w)
	if change := must2(d.Ensure(t.Context()))(w); !strings.Contains(change.OwnLink, "has [169.254.255.79/32], without its address") {
		t.Errorf("got %+v", change)
	}
	w.serve(w.node, "169.254.7.9:2579", "nmi")
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}

// TestWhatIsSomebodyElses is left as it is, in so many words, and pods are kept
// out.
func TestWhatIsSomebodyElses(t *testing.T) {
	for name, test := range map[string]struct {
		make  func(*world) error
		words string
	}{
		"a link of another type": {func(w *world) error {
			return testns.Connect(testns.End{NS: w.node, Link: ownlink.Name}, testns.End{NS: w.azure, Link: "other"})
		}, "link aad-pod-id0, of type veth, is not NMI's: delete it"},
		"a bridge with an address": {func(w *world) error {
			return w.node.AddBridge(ownlink.Name, netip.MustParsePrefix("10.99.0.1/24"))
		}, "link aad-pod-id0, of type bridge, is not NMI's: delete it"},
		"the address": {func(w *world) error {
			return w.node.AddBridge("dns0", netip.PrefixFrom(redirect.LinkAddress(), 32))
		}, "link dns0 has the address 169.254.255.79 already: give another one"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLinked(t)
			w.must(test.make(w))
			for what, try := range map[string]func(*redirect.NFTables) error{
				"Prepare": func(d *redirect.NFTables) error { _, err := d.Prepare(t.Context()); return err },
				"Ensure":  func(d *redirect.NFTables) error { _, err := d.Ensure(t.Context()); return err },
			} {
				err := try(w.datapath())
				if _, ok := errors.AsType[*ownlink.RefusalError](err); !ok || !strings.Contains(err.Error(), test.words) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: got %v, want words: %s", what, err, test.words)
				}
			}
			w.refused(w.pod, metadata)
			w.noLeaks()
			if name == "the address" {
				w.serve(w.node, w.targetIP()+":53", "dns")
				w.hears(w.pod, w.targetIP()+":53", "dns hears "+podIP)
			}
			removed := must2(w.datapath().Delete(t.Context()))(w)
			if removed.OwnLink || name != "the address" && !w.hasOwnLink() {
				t.Errorf("somebody else's link was removed: %+v", removed)
			}
		})
	}
}

// TestALinkThatWasNotFinished by an agent that was killed is taken over.
func TestALinkThatWasNotFinished(t *testing.T) {
	w := newLinked(t)
	handle := must2(nl.NewHandleAt(netns.NsHandle(w.node.FD()), unix.NETLINK_ROUTE))(w)
	defer handle.Close()
	w.must(handle.LinkAdd(&nl.Bridge{LinkAttrs: nl.LinkAttrs{Name: ownlink.Name}}))
	w.ensured()
	if removed := must2(w.datapath().Delete(t.Context()))(w); !removed.OwnLink {
		t.Errorf("removed %+v", removed)
	}
}

// TestARunningAgentsTargetIsLeftAlone: whoever comes with another target, while
// an agent runs, changes nothing.
func TestARunningAgentsTargetIsLeftAlone(t *testing.T) {
	eachTarget(t, func(w *world) {
		d, end := w.nmi()
		defer end()
		before := generation(w)
		agents := w.link
		w.aim(!agents)
		for range 2 {
			_, ensureErr := w.datapath().Ensure(w.Context())
			_, prepareErr := w.datapath().Prepare(w.Context())
			if !errors.Is(ensureErr, redirect.ErrHeld) || w.link && !errors.Is(prepareErr, redirect.ErrHeld) {
				w.Errorf("got %v and %v, want %v", ensureErr, prepareErr, redirect.ErrHeld)
			}
		}
		w.must(d.Verify(w.Context()))
		if after := generation(w); after != before || w.hasOwnLink() != agents {
			w.Errorf("the ruleset went from generation %d to %d, a link is there: %t", before, after, w.hasOwnLink())
		}
		w.hears(w.pod, metadata, "nmi hears "+podIP)
	})
}

// TestPreparingToTakeOver: what keeps the redirect ahead of an agent does not take
// the link away again that the agent has made to listen there.
func TestPreparingToTakeOver(t *testing.T) {
	w := newWorld(t)
	k := w.keep(w.datapath())
	w.aim(true)
	w.prepared()
	k.next("the new link", func(c redirect.Change) bool { return c.Links > 0 })
	d, end := w.nmi()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
	w.must(d.Verify(t.Context()))
	// A pass that began before the agent took over may have opened links since.
	w.must(w.node.SetSysctl("net.ipv4.conf.vethpod.route_localnet", "1"))
	w.serve(w.node, "127.0.0.1:8080", "loopback")
	w.openPodToLoopback()
	w.silent(w.pod, "127.0.0.1:8080")
	end()
	k.next("its own end", func(c redirect.Change) bool { return strings.Contains(c.OwnLink, "removed") })
	w.opened("1", "vethpod")
	w.refused(w.pod, metadata)
	w.noLeaks()
}

// TestTheLinkHasNoOtherUse: what the node itself sends does not come from there.
func TestTheLinkHasNoOtherUse(t *testing.T) {
	w := newLinked(t)
	w.ensured()
	w.must(w.node.DeleteAddr("eth0", netip.MustParsePrefix("10.0.0.4/24")))
	w.must(w.node.Do(func() error {
		c, err := new(net.Dialer).DialContext(t.Context(), "udp4", podIP+":9")
		if err != nil {
			return err
		}
		defer c.Close()
		if from := c.LocalAddr().(*net.UDPAddr).IP.String(); from == w.targetIP() {
			t.Errorf("the node sends from %s", from)
		}
		return nil
	}))
}
