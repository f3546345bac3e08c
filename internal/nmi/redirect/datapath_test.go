package redirect_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

func TestWorldIsSound(t *testing.T) {
	w := newWorld(t)
	w.hears(w.pod, metadata, "azure hears "+podIP)
	if w.leaked() == 0 {
		t.Error("the counter does not see what reaches azure")
	}
}

func TestPodReachesNMIAndNodeReachesTheService(t *testing.T) {
	eachTarget(t, func(w *world) {
		w.ensured()
		w.refused(w.pod, metadata)
		nmi := w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
		nmi.Close()
		w.refused(w.pod, metadata)
		w.noLeaks()
		w.hears(w.node, metadata, "azure hears 10.0.0.4")
	})
}

func TestPodsOnABridge(t *testing.T) {
	eachTarget(t, func(w *world) {
		w.must(w.node.AddBridge("cni0", netip.MustParsePrefix("10.244.8.1/24")))
		pods := map[string]*netns.NS{"10.244.8.7": netns.ForTest(w.T, "pod7"), "10.244.8.8": netns.ForTest(w.T, "pod8")}
		for ip, pod := range pods {
			w.must(netns.Connect(
				netns.End{NS: w.node, Link: "veth" + pod.Name(), Bridge: "cni0"},
				netns.End{NS: pod, Link: "eth0", Addr: netip.MustParsePrefix(ip + "/24")}))
			w.routePod(pod, netip.MustParseAddr("10.244.8.1"))
		}
		w.ensured()
		w.serve(w.node, w.target, "nmi")
		for ip, pod := range pods {
			w.hears(pod, metadata, "nmi hears "+ip)
		}
		w.noLeaks()
	})
}

func TestTargetThatIsAnAddressOfTheNode(t *testing.T) {
	w := newWorld(t)
	d := must2(redirect.New(redirect.Config{
		NetNS: w.node.FD(), Target: netip.MustParseAddrPort("10.0.0.4:2579"),
	}))(w)
	must2(d.Ensure(t.Context()))(w)
	w.must(d.Verify(t.Context()))
	w.refused(w.pod, metadata)
	w.serve(w.node, "10.0.0.4:2579", "nmi")
	w.hears(w.pod, metadata, "nmi hears "+podIP)
	w.noLeaks()
	w.opened("0", "vethpod")
}

func TestOtherTrafficToTheMetadataAddressIsDropped(t *testing.T) {
	eachTarget(t, func(w *world) {
		w.ensured()
		w.serve(w.node, w.target, "nmi")
		for _, address := range []string{"169.254.169.254:443", "169.254.169.254:2579"} {
			w.silent(w.pod, address)
		}
		c := must2(w.pod.DialContext(w.Context(), "udp4", metadata))(w)
		defer c.Close()
		must2(c.Write([]byte("x")))(w)
		// What the pod sends next and azure receives was behind it all the way.
		w.hears(w.pod, metadata, "nmi hears "+podIP)
		w.serve(w.azure, "10.0.0.1:80", "azure")
		w.hears(w.pod, "10.0.0.1:80", "azure hears "+podIP)
		w.noLeaks()
	})
}

func TestLoopbackOfTheNodeStaysClosed(t *testing.T) {
	w := newWorld(t)
	w.ensured()
	arrived := must2(w.node.CountArrivals("vethpod", netip.MustParseAddr("127.0.0.1")))(w)
	for _, address := range []string{w.target, "127.0.0.1:8080"} {
		w.serve(w.node, address, "loopback")
		w.hears(w.node, address, "loopback hears 127.0.0.1")
	}
	w.openPodToLoopback()
	for _, address := range []string{w.target, "127.0.0.1:8080"} {
		w.silent(w.pod, address)
	}
	if n := must2(arrived.Count())(w); n < 2 {
		t.Errorf("only %d of the pod's packets for loopback arrived: this test proves nothing", n)
	}
}

func TestNoPacketFromOutsideIsFromLoopback(t *testing.T) {
	w := newWorld(t)
	w.ensured()
	// The node takes packets from 127.0.0.9 for local ones only when that is
	// an address of its own, which it is not.
	w.must(w.pod.AddAddr("eth0", netip.MustParsePrefix("127.0.0.9/32")))
	w.must(w.pod.SetSysctl("net.ipv4.conf.eth0.route_localnet", "1"))
	arrived := must2(w.node.CountArrivals("vethpod", netip.MustParseAddr(nodeIP)))(w)
	receiver := must2(w.node.ListenPacket(t.Context(), "udp4", nodeIP+":9"))(w)
	defer receiver.Close()
	w.refused(w.pod, metadata) // so the pod knows its neighbour
	for _, from := range []string{"127.0.0.9", podIP} {
		w.must(w.pod.Do(func() error {
			dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			c, err := dialer.DialContext(t.Context(), "udp4", nodeIP+":9")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(from))
			return err
		}))
	}
	buffer := make([]byte, 100)
	n, _, err := receiver.ReadFrom(buffer)
	if err != nil || string(buffer[:n]) != podIP {
		t.Errorf("first came %q, %v, want the packet of %s", buffer[:n], err, podIP)
	}
	if n := must2(arrived.Count())(w); n != 2 {
		t.Errorf("%d packets arrived, want 2: this test proves nothing", n)
	}
}

func TestOthersCannotAnswerInNMIsName(t *testing.T) {
	eachTarget(t, func(w *world) {
		w.ensured()
		var other net.Listener
		w.must(w.node.Do(func() (err error) {
			// Per thread, and so only for the socket that is made here.
			if err := unix.Setfsuid(65534); err != nil {
				return err
			}
			defer func() { _ = unix.Setfsuid(0) }()
			other, err = new(net.ListenConfig).Listen(w.Context(), "tcp4", w.target)
			return err
		}))
		w.serveOn(other, "other")
		w.silent(w.pod, metadata)
		w.silent(w.node, w.target)
		other.Close()
		w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
		w.noLeaks()
	})
}

func TestEnsureChangesNothingTwice(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := w.datapath()
		first := must2(d.Ensure(w.Context()))(w)
		if !first.Rules || first.FlowsErr != nil || !strings.Contains(first.Reason, "missing") {
			w.Errorf("the first time: got %+v", first)
		}
		if w.link && (first.Links != 0 || !strings.Contains(first.OwnLink, "missing")) || !w.link && (first.Links != 2 || first.OwnLink != "") {
			w.Errorf("the first time: got %+v", first)
		}
		before := generation(w)
		second := must2(d.Ensure(w.Context()))(w)
		if !second.IsZero() {
			w.Errorf("the second time: got %+v, want no change", second)
		}
		another := must2(w.datapath().Ensure(w.Context()))(w)
		if !another.IsZero() {
			w.Errorf("by a new process: got %+v, want no change", another)
		}
		if after := generation(w); after != before {
			w.Errorf("the ruleset went from generation %d to %d", before, after)
		}
	})
}

func TestReplacingRulesLeavesNoGap(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := w.ensured()
		w.serve(w.node, w.target, "nmi")
		const atLeast = 20
		enough, done := make(chan struct{}), make(chan struct{})
		replaced := 0
		go func() {
			defer close(done)
			for {
				select {
				case <-enough:
					if replaced >= atLeast {
						return
					}
				default:
				}
				// A rule too many, so that everything is replaced.
				w.damage(damages()["a rule behind ours"].do)
				if change, err := d.Ensure(w.Context()); err != nil || !change.Rules {
					w.Errorf("got %+v, %v, want a replacement", change, err)
					return
				}
				replaced++
			}
		}()
		for range atLeast {
			w.hears(w.pod, metadata, "nmi hears "+podIP)
		}
		close(enough)
		<-done
		w.noLeaks()
	})
}

func TestConnectionsOlderThanTheRules(t *testing.T) {
	w := newWorld(t)
	w.trackConnections()
	l := must2(w.azure.Listen(t.Context(), "tcp4", "169.254.169.254:81"))(w)
	defer l.Close()
	old := must2(w.pod.DialContext(t.Context(), "tcp4", "169.254.169.254:81"))(w)
	defer old.Close()
	d := must2(redirect.New(redirect.Config{
		NetNS: w.node.FD(), Metadata: netip.MustParseAddrPort("169.254.169.254:81"),
	}))(w)
	before := w.leaked()
	change := must2(d.Ensure(t.Context()))(w)
	if change.Flows != 1 || change.FlowsErr != nil {
		t.Errorf("got %+v, want one connection forgotten", change)
	}
	// The node knows nothing of this connection now, so that its next packet
	// is led to the target, where nobody knows it either.
	must2(old.Write([]byte("x")))(w)
	w.must(old.SetReadDeadline(time.Now().Add(10 * time.Second)))
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("reading from the old connection: got %v, want a reset", err)
	}
	if after := w.leaked(); after != before {
		t.Errorf("%d packets of the old connection reached azure", after-before)
	}
}

func TestConnectionsToNMISurviveARepair(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := w.ensured()
		l := must2(w.node.Listen(w.Context(), "tcp4", w.target))(w)
		defer l.Close()
		c := must2(w.pod.DialContext(w.Context(), "tcp4", metadata))(w)
		defer c.Close()
		served := must2(l.Accept())(w)
		w.damage(func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
		change := must2(d.Ensure(w.Context()))(w)
		if !change.Rules || change.Flows != 0 || change.FlowsErr != nil {
			w.Errorf("got %+v, want a repair that forgets no connection", change)
		}
		must2(io.WriteString(served, "still here"))(w)
		served.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != "still here" {
			w.Errorf("got %q, %v", got, err)
		}
	})
}

func TestDeleteLeavesNothing(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := w.ensured()
		want := redirect.Removal{Tables: []string{mainTable, fenceTable, spareTable}, Links: 2, Flows: 1}
		open := "1"
		if w.link {
			want.Links, want.OwnLink, open = 0, true, "0"
		}
		w.opened(open, "eth0", "vethpod")
		w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP) // so there is a connection to forget
		if diff := cmp.Diff(want.Tables, must2(w.datapath().Tables())(w)); diff != "" {
			w.Error(diff)
		}
		removed := must2(w.datapath().Delete(w.Context()))(w) // by a new process
		if diff := cmp.Diff(want, removed); diff != "" {
			w.Error(diff)
		}
		if again := must2(w.datapath().Delete(w.Context()))(w); !again.IsZero() {
			w.Errorf("the second time %+v was removed", again)
		}
		conn := must2(nftables.New(nftables.WithNetNSFd(w.node.FD())))(w)
		if tables := must2(conn.ListTables())(w); len(tables) != 0 {
			w.Errorf("%d tables are left", len(tables))
		}
		if tables := must2(d.Tables())(w); len(tables) != 0 {
			w.Errorf("tables %v are left", tables)
		}
		w.opened("0", "eth0", "vethpod", "lo", "all", "default")
		if w.hasOwnLink() {
			w.Error("NMI's own link is left")
		}
		if err := d.Verify(w.Context()); err == nil {
			w.Error("Verify is content with nothing")
		}
		w.hears(w.pod, metadata, "azure hears "+podIP)
	})
}

// opened fails the test unless route_localnet of the node's links is the one wanted.
func (w *world) opened(want string, links ...string) {
	w.Helper()
	for _, link := range links {
		if got := must2(w.node.Sysctl("net.ipv4.conf." + link + ".route_localnet"))(w); got != want {
			w.Errorf("route_localnet of %s is %s, want %s", link, got, want)
		}
	}
}

// hasOwnLink says whether the node has a link of NMI's name.
func (w *world) hasOwnLink() bool {
	_, err := w.node.Index(ownlink.Name)
	return err == nil
}
