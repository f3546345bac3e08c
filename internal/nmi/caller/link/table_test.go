package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/mdlayher/netlink"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// told are the events that an observer was told.
type told struct {
	mu     sync.Mutex
	events []Event
}

func (o *told) observe(events []Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, events...)
}

func (o *told) has(match func(Event) bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.events, match)
}

// opened returns a table of a new namespace.
func opened(t *testing.T) (*netns.NS, *Table, *told) {
	t.Helper()
	ns, observer := netns.ForTest(t, "node"), &told{}
	var table *Table
	err := ns.Do(func() (err error) {
		table, err = Open(Options{Observe: observer.observe})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns, table, observer
}

func pathTo(t *testing.T, table *Table, address string) Path {
	t.Helper()
	path, err := table.Path(netip.MustParseAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A link that comes, moves and goes is seen at once by whoever asks, though
// nobody reads announcements meanwhile.
func TestALinkComesAndGoes(t *testing.T) {
	ns, table, observer := opened(t)
	if got := pathTo(t, table, "10.1.0.1"); got.Proof != IPOnly || got.Known() {
		t.Errorf("before: %+v", got)
	}
	for round := range 20 {
		pod, name := netns.ForTest(t, "pod"), fmt.Sprint("veth", round)
		must(t, netns.Connect(
			netns.End{NS: ns, Link: name, Addr: netip.MustParsePrefix("10.1.0.0/31")},
			netns.End{NS: pod, Link: "eth0", Addr: netip.MustParsePrefix("10.1.0.1/31")}))
		index, err := ns.Index(name)
		must(t, err)
		got := pathTo(t, table, "10.1.0.1")
		if got.Proof != PerLink || got.Link != index || got.Name != name || got.Old || got.Born.IsZero() {
			t.Fatalf("round %d: %+v", round, got)
		}
		if local := pathTo(t, table, "10.1.0.0"); local.Proof != IPOnly {
			t.Errorf("the node's own address: %+v", local)
		}
		must(t, ns.DeleteLink(name))
		if got := pathTo(t, table, "10.1.0.1"); got.Proof != IPOnly {
			t.Fatalf("round %d, after its end: %+v", round, got)
		}
		if !observer.has(func(e Event) bool { return e.Kind == Gone && e.Link == index }) {
			t.Fatalf("round %d: its end was not told", round)
		}
	}
}

func TestAnAddressOnABridge(t *testing.T) {
	ns, table, _ := opened(t)
	must(t, ns.AddBridge("br0", netip.MustParsePrefix("10.2.0.1/24")))
	pod := netns.ForTest(t, "pod")
	must(t, netns.Connect(
		netns.End{NS: ns, Link: "veth1", Bridge: "br0"},
		netns.End{NS: pod, Link: "eth0", Addr: netip.MustParsePrefix("10.2.0.2/24")}))
	port, err := ns.Index("veth1")
	must(t, err)
	if got := pathTo(t, table, "10.2.0.2"); got.Proof != PerPort || got.Known() {
		t.Errorf("before anybody asked: %+v", got)
	}
	// The kernel asks by itself; its answer is news.
	ctx, cancel := context.WithCancel(t.Context())
	news, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- table.Run(ctx, func() {
			select {
			case news <- struct{}{}:
			default:
			}
		})
	}()
	must(t, table.Resolve(netip.MustParseAddr("10.2.0.2")))
	for {
		if got := pathTo(t, table, "10.2.0.2"); got.Known() {
			if got.Link != port || got.Name != "veth1" || got.MAC == (MAC{}) {
				t.Errorf("got %+v", got)
			}
			break
		}
		<-news
	}
	cancel()
	must(t, <-done)
	for _, elsewhere := range []string{"10.9.9.9", "10.2.0.1", "fd00::1"} {
		must(t, table.Resolve(netip.MustParseAddr(elsewhere)))
	}
}

// What was there at first is old; what announcements were lost about is found by
// reading everything anew.
func TestWhatWasMissedIsReadAnew(t *testing.T) {
	ns := netns.ForTest(t, "node")
	must(t, ns.AddBridge("before", netip.MustParsePrefix("10.3.0.1/24")))
	observer := &told{}
	var table *Table
	must(t, ns.Do(func() (err error) {
		table, err = Open(Options{Observe: observer.observe})
		return err
	}))
	index, err := ns.Index("before")
	must(t, err)
	if device := table.view.devices[index]; !device.old || device.Kind != "bridge" {
		t.Errorf("got %+v", device)
	}
	must(t, ns.DeleteLink("before"))
	must(t, ns.AddBridge("after", netip.MustParsePrefix("10.4.0.1/24")))
	table.mu.Lock()
	err = table.take(nil, true) // as if nothing of this had been announced
	table.mu.Unlock()
	must(t, err)
	for _, want := range []Event{{Kind: Missed}, {Kind: Gone, Link: index}} {
		if !observer.has(func(e Event) bool { return e.Kind == want.Kind && e.Link == want.Link }) {
			t.Errorf("not told of %+v", want)
		}
	}
	devices, err := table.Devices()
	must(t, err)
	if i := slices.IndexFunc(devices, func(d Device) bool { return d.Name == "after" }); i < 0 || devices[i].old {
		t.Errorf("got %+v", devices)
	}
	must(t, table.Close())
	must(t, table.Close())
	if _, err := table.Path(podAddr); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := table.Bypasses(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after its end: %v", err)
	}
}

func TestSigns(t *testing.T) {
	for name, test := range map[string]struct {
		device Device
		want   int
	}{
		"a veth":           {Device{Name: "veth1", Kind: "veth"}, 0},
		"hardware by XDP":  {Device{Name: "eth0", XDP: true}, 0},
		"a veth by XDP":    {Device{Name: "veth1", Kind: "veth", XDP: true}, 1},
		"Cilium":           {Device{Name: "cilium_host", Kind: "veth"}, 1},
		"netkit":           {Device{Name: "nk", Kind: "netkit"}, 1},
		"macvlan, macvtap": {Device{Name: "shim", Kind: "macvlan"}, 1},
		"ipvlan":           {Device{Name: "shim", Kind: "ipvlan"}, 1},
	} {
		if got := signs([]Device{{Name: "lo"}, test.device}); len(got) != test.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestPlainLinksBypassNothing(t *testing.T) {
	ns, table, _ := opened(t)
	pod := netns.ForTest(t, "pod")
	must(t, netns.Connect(netns.End{NS: ns, Link: "veth1"}, netns.End{NS: pod, Link: "eth0"}))
	if got, err := table.Bypasses(); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestIsProgram(t *testing.T) {
	filter := func(kind string) []byte {
		return message(sizeofTrafficMessage, func([]byte) {}, netlink.Attribute{Type: tcaKind, Data: []byte(kind + "\x00")})
	}
	for name, test := range map[string]struct {
		data []byte
		want bool
	}{
		"BPF": {filter("bpf"), true}, "another": {filter("matchall"), false}, "too short": {make([]byte, 3), false},
	} {
		if got := isProgram(test.data); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
