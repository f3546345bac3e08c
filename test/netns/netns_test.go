package netns_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

const metadata = "169.254.169.254:80"

// pair returns two namespaces that are joined by a veth pair, 10.0.0.1 and
// 10.0.0.2, both called eth0.
func pair(t *testing.T) (a, b *netns.NS) {
	t.Helper()
	a, b = netns.ForTest(t, "a"), netns.ForTest(t, "b")
	must(t, netns.Connect(
		netns.End{NS: a, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.1/24")},
		netns.End{NS: b, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.2/24")}))
	return a, b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNewNamespaceReachesNothing(t *testing.T) {
	n := netns.ForTest(t, "n")
	for address, want := range map[string]error{
		metadata:      unix.EINVAL, // a blackhole
		"192.0.2.1:1": unix.ENETUNREACH,
	} {
		_, err := n.DialContext(t.Context(), "tcp4", address)
		if !errors.Is(err, want) {
			t.Errorf("dialing %s: got %v, want %v", address, err, want)
		}
	}
	inode := func(path string) uint64 {
		var stat unix.Stat_t
		must(t, unix.Stat(path, &stat))
		return stat.Ino
	}
	var inside uint64
	must(t, n.Do(func() error { inside = inode("/proc/thread-self/ns/net"); return nil }))
	if outside := inode("/proc/thread-self/ns/net"); inside == outside {
		t.Error("Do ran in the namespace of the test")
	}
	if got := inode(n.Path()); got != inside {
		t.Errorf("%s is namespace %d, want %d", n.Path(), got, inside)
	}
}

func TestOpenOutlivesTheProcess(t *testing.T) {
	n := netns.ForTest(t, "n")
	cmd := exec.Command("/bin/cat")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, n.Start(cmd))
	opened, err := netns.Open("n, by process", cmd.Process.Pid)
	must(t, err)
	must(t, stdin.Close())
	must(t, cmd.Wait())
	inode := func(n *netns.NS) (stat unix.Stat_t) {
		must(t, n.Do(func() error { return unix.Stat("/proc/thread-self/ns/net", &stat) }))
		return stat
	}
	if got, want := inode(opened).Ino, inode(n).Ino; got != want {
		t.Errorf("opened namespace %d, want %d", got, want)
	}
	must(t, opened.Close())
	if _, err := n.Index("lo"); err != nil {
		t.Errorf("closing it took something away: %v", err)
	}
	if _, err := netns.Open("ended", cmd.Process.Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v for a process that has ended, want %v", err, os.ErrNotExist)
	}
}

func TestTrafficAndCount(t *testing.T) {
	a, b := pair(t)
	counter, err := b.CountArrivals("eth0", netip.MustParseAddr("10.0.0.2"))
	must(t, err)
	other, err := b.CountArrivals("eth0", netip.MustParseAddr("10.0.0.3"))
	must(t, err)
	outgoing, err := a.CountArrivals("eth0", netip.MustParseAddr("10.0.0.2"))
	must(t, err)

	sender, err := a.DialContext(t.Context(), "udp4", "10.0.0.2:9")
	must(t, err)
	defer sender.Close()
	receiver, err := b.ListenPacket(t.Context(), "udp4", "10.0.0.2:9")
	must(t, err)
	defer receiver.Close()
	const sent = 500 // more than the counter's socket can queue
	for range sent {
		_, err := sender.Write([]byte("x"))
		must(t, err)
		_, _, err = receiver.ReadFrom(make([]byte, 1))
		must(t, err)
	}
	for name, test := range map[string]struct {
		counter *netns.Counter
		want    uint64
	}{
		"packets for the address":             {counter, sent},
		"packets for another address":         {other, 0},
		"packets that leave, on their sender": {outgoing, 0},
	} {
		for range 2 { // reading does not reset
			got, err := test.counter.Count()
			if err != nil || got != test.want {
				t.Errorf("%s: got %d, %v, want %d", name, got, err, test.want)
			}
		}
	}
}

func TestListenAndDial(t *testing.T) {
	a, b := pair(t)
	l, err := b.Listen(t.Context(), "tcp4", "10.0.0.2:80")
	must(t, err)
	defer l.Close()
	from := make(chan string, 1)
	go func() {
		defer close(from)
		if c, err := l.Accept(); err == nil {
			from <- c.RemoteAddr().String()
			c.Close()
		}
	}()
	c, err := a.DialContext(t.Context(), "tcp4", "10.0.0.2:80")
	must(t, err)
	defer c.Close()
	if got := <-from; got != c.LocalAddr().String() || !strings.HasPrefix(got, "10.0.0.1:") {
		t.Errorf("the listener saw %q, the dialer is %s", got, c.LocalAddr())
	}
}

func TestBridgeForwardsBetweenNamespaces(t *testing.T) {
	node := netns.ForTest(t, "node")
	must(t, node.AddBridge("cni0", netip.MustParsePrefix("10.1.0.1/24")))
	pods := []*netns.NS{netns.ForTest(t, "pod2"), netns.ForTest(t, "pod3")}
	for i, pod := range pods {
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 2)}), 24)
		must(t, netns.Connect(netns.End{NS: node, Link: "veth" + pod.Name(), Bridge: "cni0"},
			netns.End{NS: pod, Link: "eth0", Addr: addr}))
		must(t, pod.SetRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.1.0.1")))
	}
	l, err := pods[1].Listen(t.Context(), "tcp4", "10.1.0.3:80")
	must(t, err)
	defer l.Close()
	c, err := pods[0].DialContext(t.Context(), "tcp4", l.Addr().String())
	must(t, err)
	c.Close()
	// The blackhole is more exact than a default route.
	if _, err := pods[0].DialContext(t.Context(), "tcp4", metadata); !errors.Is(err, unix.EINVAL) {
		t.Errorf("dialing %s: got %v, want EINVAL", metadata, err)
	}
}

func TestDeleteAddr(t *testing.T) {
	a, b := pair(t)
	loopback := netip.MustParsePrefix("127.0.0.1/8")
	must(t, a.DeleteAddr("lo", loopback))
	must(t, a.SetRoute(netip.MustParsePrefix("127.0.0.1/32"), netip.MustParseAddr("10.0.0.2")))
	arrived, err := b.CountArrivals("eth0", loopback.Addr())
	must(t, err)
	must(t, b.SetSysctl("net.ipv4.conf.eth0.route_localnet", "1"))
	receiver, err := b.ListenPacket(t.Context(), "udp4", "127.0.0.1:9")
	must(t, err)
	defer receiver.Close()
	sender, err := a.DialContext(t.Context(), "udp4", "127.0.0.1:9")
	must(t, err)
	defer sender.Close()
	_, err = sender.Write([]byte("x"))
	must(t, err)
	_, _, err = receiver.ReadFrom(make([]byte, 1))
	must(t, err)
	if n, err := arrived.Count(); err != nil || n != 1 {
		t.Errorf("%d packets for loopback left the namespace, %v, want 1", n, err)
	}
	if err := a.DeleteAddr("lo", loopback); err == nil {
		t.Error("an address that is not there was deleted")
	}
}

func TestSysctl(t *testing.T) {
	n, outside := netns.ForTest(t, "n"), netns.ForTest(t, "outside")
	must(t, n.SetSysctl("net.ipv4.ip_forward", "1"))
	for ns, want := range map[*netns.NS]string{n: "1", outside: "0"} {
		got, err := ns.Sysctl("net.ipv4.ip_forward")
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", ns.Name(), got, err, want)
		}
	}
	for _, key := range []string{"kernel.ostype", "net/../kernel/ostype", "net/../../sys/kernel/ostype", "/net/ipv4/ip_forward"} {
		if _, err := n.Sysctl(key); err == nil {
			t.Errorf("%s was read", key)
		}
	}
}

func TestCloseEndsWhatItStarted(t *testing.T) {
	n := netns.ForTest(t, "n")
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	must(t, n.Start(cmd))
	link, err := os.Readlink(filepath.Join("/proc", pid(cmd), "ns/net"))
	must(t, err)
	if own, _ := os.Readlink("/proc/self/ns/net"); own == link {
		t.Error("the command runs in the namespace of the test")
	}
	must(t, n.Close())
	must(t, n.Close())
	if err := syscall.Kill(cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the command is still there: %v", err)
	}
	if err := n.Start(exec.CommandContext(t.Context(), "sleep", "1000")); err == nil {
		t.Error("a closed namespace started a command")
	}
}

func pid(cmd *exec.Cmd) string { return strconv.Itoa(cmd.Process.Pid) }

func TestCloseRemovesLinks(t *testing.T) {
	a, b := pair(t)
	c, err := b.DialContext(t.Context(), "udp4", "10.0.0.1:9") // keeps the namespace of b alive
	must(t, err)
	defer c.Close()
	must(t, b.Close())
	if _, err := a.Index("eth0"); err == nil {
		t.Error("the peer of a closed namespace's link is still there")
	}
}

func TestFailedConnectLeavesNothing(t *testing.T) {
	a, b := netns.ForTest(t, "a"), netns.ForTest(t, "b")
	err := netns.Connect(netns.End{NS: a, Link: "eth0"}, netns.End{NS: b, Link: "eth0", Bridge: "missing"})
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); !ok {
		t.Errorf("got %v, want a link that is not found", err)
	}
	for _, n := range []*netns.NS{a, b} {
		if _, err := n.Index("eth0"); err == nil {
			t.Errorf("eth0 is still in %s", n.Name())
		}
	}
}

func TestDoSurvivesGoexit(t *testing.T) {
	n := netns.ForTest(t, "n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Do(func() error { runtime.Goexit(); return nil }) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a function that did not return is no error")
		}
	case <-ctx.Done():
		t.Error("Do hangs")
	}
}
