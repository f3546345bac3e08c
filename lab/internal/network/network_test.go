package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/network"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// onMachine gives the test a network namespace that stands for the machine's:
// no link of a test ever is on the real one. The thread is thrown away with it.
func onMachine(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("these tests need root: %v", err)
			return
		}
		test(t)
	}()
	<-done
}

// member is a process in a network namespace of its own.
func member(t *testing.T) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "120")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // killed by the test's context
	return cmd.Process.Pid
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
}

// routes are those of the main table in a process's namespace, in words.
func routes(t *testing.T, pid int) []string {
	t.Helper()
	fd, err := netns.GetFromPid(pid)
	check(t, err)
	defer fd.Close() // only read
	handle, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	check(t, err)
	defer handle.Close()
	list, err := handle.RouteList(nil, netlink.FAMILY_V4)
	check(t, err)
	var words []string
	for _, r := range list {
		w := "default"
		if r.Dst != nil {
			w = r.Dst.String()
		}
		if r.Type == unix.RTN_BLACKHOLE {
			w = fmt.Sprintf("blackhole %s metric %d", w, r.Priority)
		} else if r.Gw != nil {
			w += " via " + r.Gw.String()
		}
		words = append(words, w)
	}
	slices.Sort(words)
	return words
}

func TestNumbersAreClaimedOnce(t *testing.T) {
	onMachine(t, func(t *testing.T) {
		check(t, occupy("10.102.7.0/24"))
		var numbers []int
		for range 3 {
			n, err := network.Claim(member(t))
			check(t, err)
			numbers = append(numbers, n)
		}
		// 2 has addresses that the machine routes elsewhere.
		if diff := cmp.Diff([]int{0, 1, 3}, numbers); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		check(t, network.Disconnect(1))
		n, err := network.Claim(member(t))
		check(t, err)
		if n != 1 {
			t.Errorf("got %d, want the number that was given back", n)
		}
	})
}

// occupy routes a range by a link of the machine's.
func occupy(prefix string) error {
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other"}}); err != nil {
		return err
	}
	link, err := netlink.LinkByName("other")
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(link), netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index}))
}

// TestNothingLeadsOut builds the links of a lab and lists every route of every
// namespace.
func TestNothingLeadsOut(t *testing.T) {
	onMachine(t, func(t *testing.T) {
		hub := member(t)
		number, err := network.Claim(hub)
		check(t, err)
		lab, err := topology.New(number, 2)
		check(t, err)
		check(t, network.ConnectHub(lab, hub))
		nodes := []int{member(t), member(t)}
		for i, n := range lab.Nodes {
			check(t, network.ConnectNode(lab, n, hub, nodes[i]))
		}
		blackhole := "blackhole 169.254.169.254/32 metric 4096"
		for who, c := range map[string]struct {
			pid  int
			want []string
		}{
			"the hub": {hub, []string{"10.100.0.0/24", "10.100.101.0/24 via 10.100.0.11", "10.100.102.0/24 via 10.100.0.12", "10.100.254.0/31", blackhole}},
			"node 1":  {nodes[0], []string{"10.100.0.0/24", "10.100.102.0/24 via 10.100.0.12", "10.96.0.0/16", "169.254.169.254/32 via 10.100.0.1", blackhole}},
			"node 2":  {nodes[1], []string{"10.100.0.0/24", "10.100.101.0/24 via 10.100.0.11", "10.96.0.0/16", "169.254.169.254/32 via 10.100.0.1", blackhole}},
		} {
			if diff := cmp.Diff(c.want, routes(t, c.pid)); diff != "" {
				t.Errorf("routes of %s (-want +got):\n%s", who, diff)
			}
		}
		// 169.254.169.254 is an address of the hub, and never of a node.
		for i, pid := range nodes {
			if slices.Contains(addresses(t, pid), topology.Metadata()) {
				t.Errorf("node %d has the metadata address", i+1)
			}
		}
		if !slices.Contains(addresses(t, hub), topology.Metadata()) {
			t.Error("the hub has no metadata address")
		}
	})
}

func addresses(t *testing.T, pid int) []netip.Addr {
	t.Helper()
	fd, err := netns.GetFromPid(pid)
	check(t, err)
	defer fd.Close() // only read
	handle, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	check(t, err)
	defer handle.Close()
	list, err := handle.AddrList(nil, netlink.FAMILY_V4)
	check(t, err)
	var addrs []netip.Addr
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.IP.To4())
		addrs = append(addrs, addr)
	}
	return addrs
}

func TestMachineGetsOneLinkAndOneRoute(t *testing.T) {
	onMachine(t, func(t *testing.T) {
		hub := member(t)
		number, err := network.Claim(hub)
		check(t, err)
		lab, err := topology.New(number, 1)
		check(t, err)
		check(t, network.ConnectHub(lab, hub))
		left, err := network.Left(number)
		check(t, err)
		if diff := cmp.Diff([]string{"link lab0", "route 10.100.0.0/16", "route 10.100.254.0/31"}, sorted(left)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		check(t, network.Disconnect(number))
		check(t, network.Disconnect(number)) // gone is gone
		left, err = network.Left(number)
		check(t, err)
		if len(left) > 0 {
			t.Errorf("left behind: %s", strings.Join(left, ", "))
		}
	})
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
