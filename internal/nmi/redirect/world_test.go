package redirect_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

const (
	metadata = "169.254.169.254:80"
	podIP    = "10.244.0.2"
	nodeIP   = "10.244.0.1"

	mainTable  = "aad-pod-identity"
	fenceTable = "aad-pod-identity-fence"
	spareTable = "aad-pod-identity-fence-spare"
)

// world is a node between a pod and the simulated metadata service.
type world struct {
	*testing.T
	node, pod, azure *netns.NS
	leaks            *netns.Counter // packets for the metadata address that reached azure

	link   bool   // NMI's own link has the target
	target string // where pods are led to
}

// eachTarget runs f as a test for each target that pods can be led to.
func eachTarget(t *testing.T, f func(w *world)) {
	t.Helper()
	for name, link := range map[string]bool{"to loopback": false, "to a link of NMI's own": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait more than they work
			w := newWorld(t)
			w.aim(link)
			f(w)
		})
	}
}

// aim sets the target.
func (w *world) aim(link bool) {
	w.link, w.target = link, netip.AddrPortFrom(redirect.DefaultAddress(link), 2579).String()
}

// targetIP is the target's address.
func (w *world) targetIP() string { return netip.MustParseAddrPort(w.target).Addr().String() }

// newWorld makes the namespaces: pod — node — azure. The pod hangs on a veth of
// its own.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := newNode(t)
	w.pod = w.addPod("pod", podIP)
	return w
}

// newNode is newWorld without a pod.
func newNode(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, node: netns.ForTest(t, "node"), azure: netns.ForTest(t, "azure")}
	w.aim(false)
	w.must(w.node.SetSysctl("net.ipv4.ip_forward", "1"))
	w.must(netns.Connect(
		netns.End{NS: w.node, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.4/24")},
		netns.End{NS: w.azure, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.1/24")}))
	imds := netip.MustParseAddr("169.254.169.254")
	w.must(w.azure.AddAddr("eth0", netip.PrefixFrom(imds, 32)))
	w.must(w.azure.SetRoute(netip.MustParsePrefix("10.244.0.0/16"), netip.MustParseAddr("10.0.0.4")))
	w.must(w.node.SetRoute(netip.PrefixFrom(imds, 32), netip.MustParseAddr("10.0.0.1")))
	w.leaks = must2(w.azure.CountArrivals("eth0", imds))(t)
	w.serve(w.azure, metadata, "azure")
	return w
}

// addPod joins a pod to the node by a veth of its own, as routing CNIs do.
func (w *world) addPod(name, ip string) *netns.NS {
	w.Helper()
	addr := netip.MustParseAddr(ip)
	pod := netns.ForTest(w.T, name)
	w.must(netns.Connect(
		netns.End{NS: w.node, Link: "veth" + name, Addr: netip.PrefixFrom(addr.Prev(), 30)},
		netns.End{NS: pod, Link: "eth0", Addr: netip.PrefixFrom(addr, 30)}))
	w.routePod(pod, addr.Prev())
	return pod
}

func (w *world) routePod(pod *netns.NS, via netip.Addr) {
	w.Helper()
	w.must(pod.SetRoute(netip.MustParsePrefix("0.0.0.0/0"), via))
	w.must(pod.SetRoute(netip.MustParsePrefix("169.254.169.254/32"), via))
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func must2[T any](value T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return value
	}
}

// serve answers every connection with its own name and the caller's address.
func (w *world) serve(n *netns.NS, address, name string) net.Listener {
	w.Helper()
	l := must2(n.Listen(w.Context(), "tcp4", address))(w)
	w.serveOn(l, name)
	return l
}

func (w *world) serveOn(l net.Listener, name string) {
	w.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, name+" hears "+host)
			c.Close()
		}
	}()
}

// ask connects and returns what it is told.
func (w *world) ask(from *netns.NS, address string) (string, error) {
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp4", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	return string(text), err
}

// askBriefly is ask by the pod, for what may be silent.
func (w *world) askBriefly() (string, error) {
	ctx, cancel := context.WithTimeout(w.Context(), 300*time.Millisecond)
	defer cancel()
	c, err := w.pod.DialContext(ctx, "tcp4", metadata)
	if err != nil {
		return "", err
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	return string(text), err
}

// hears fails the test unless the answer is the one wanted.
func (w *world) hears(from *netns.NS, address, want string) {
	w.Helper()
	if got, err := w.ask(from, address); err != nil || got != want {
		w.Errorf("%s asks %s: got %q, %v, want %q", from.Name(), address, got, err, want)
	}
}

// refused fails the test unless the connection is refused at once.
func (w *world) refused(from *netns.NS, address string) {
	w.Helper()
	if got, err := w.ask(from, address); !errors.Is(err, unix.ECONNREFUSED) {
		w.Errorf("%s asks %s: got %q, %v, want a refusal", from.Name(), address, got, err)
	}
}

// silent fails the test if the connection is answered in any way. What would
// answer is in this process, and takes microseconds.
func (w *world) silent(from *netns.NS, address string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 300*time.Millisecond)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp4", address)
	if err == nil {
		c.Close()
	}
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
		w.Errorf("%s asks %s: got %v, want silence", from.Name(), address, err)
	}
}

// openPodToLoopback has the pod give up its own loopback, to send packets for
// the node's.
func (w *world) openPodToLoopback() {
	w.Helper()
	w.must(w.pod.SetSysctl("net.ipv4.conf.eth0.route_localnet", "1"))
	w.must(w.pod.DeleteAddr("lo", netip.MustParsePrefix("127.0.0.1/8")))
	w.must(w.pod.SetRoute(netip.MustParsePrefix("127.0.0.1/32"), netip.MustParseAddr(nodeIP)))
}

// leaked returns how many packets for the metadata address reached azure.
func (w *world) leaked() uint64 {
	w.Helper()
	return must2(w.leaks.Count())(w)
}

func (w *world) noLeaks() {
	w.Helper()
	if n := w.leaked(); n != 0 {
		w.Errorf("%d packets for the metadata address reached azure", n)
	}
}

// datapath returns the datapath of the node.
func (w *world) datapath() *redirect.NFTables {
	w.Helper()
	return must2(redirect.New(redirect.Config{NetNS: w.node.FD(), UID: uint32(unix.Geteuid()), Link: w.link}))(w)
}

// prepared has what NMI listens on be there.
func (w *world) prepared() {
	w.Helper()
	must2(w.datapath().Prepare(w.Context()))(w)
}

// ensured returns the datapath of the node, in place.
func (w *world) ensured() *redirect.NFTables {
	w.Helper()
	d := w.datapath()
	must2(d.Ensure(w.Context()))(w)
	w.must(d.Verify(w.Context()))
	return d
}
