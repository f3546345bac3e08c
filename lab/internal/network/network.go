// Package network links the namespaces of a lab with each other and with the
// machine.
//
//	machine  lab<N> ── host  azure  nodes (bridge) ── eth0  node 1, 2, …
//
// Each namespace is that of a process, so that links go when the process does.
// No namespace gets a default route, and the first thing in each is a blackhole
// for the metadata address. On the machine, one link, its address and one route
// to the lab are all that is ever made.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// lastResort is the metric of the blackhole: any other route to the metadata
// address comes before it, and without one, it holds.
const lastResort = 4096

// space is the network namespace of a process, or the machine's.
type space struct {
	*netlink.Handle
	fd netns.NsHandle
}

func open(pid int) (*space, error) {
	fd, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace of process %d: %w", pid, err)
	}
	handle, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening rtnetlink: %w", err), fd.Close())
	}
	return &space{Handle: handle, fd: fd}, nil
}

func (s *space) close() {
	s.Close()
	_ = s.fd.Close() // only read
}

// seal puts the blackhole in place before there is any link that is up.
func (s *space) seal() error {
	blackhole := &netlink.Route{Dst: ipNet(host(topology.Metadata())), Type: unix.RTN_BLACKHOLE, Priority: lastResort}
	if err := s.RouteReplace(blackhole); err != nil {
		return fmt.Errorf("adding the blackhole route for %s: %w", topology.Metadata(), err)
	}
	return s.up("lo")
}

func (s *space) up(name string, addrs ...netip.Prefix) error {
	link, err := s.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	for _, addr := range addrs {
		if err := s.AddrReplace(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
			return fmt.Errorf("adding %s to link %s: %w", addr, name, err)
		}
	}
	if err := s.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting link %s up: %w", name, err)
	}
	return nil
}

func (s *space) via(dst netip.Prefix, gateway netip.Addr) error {
	if err := s.RouteReplace(&netlink.Route{Dst: ipNet(dst), Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("routing %s via %s: %w", dst, gateway, err)
	}
	return nil
}

func (s *space) dev(dst netip.Prefix, name string) error {
	link, err := s.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	if err := s.RouteReplace(&netlink.Route{Dst: ipNet(dst), LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK}); err != nil {
		return fmt.Errorf("routing %s to %s: %w", dst, name, err)
	}
	return nil
}

// Claim makes the link between the machine and the hub and so claims a number:
// the lowest whose link does not exist and whose addresses the machine does not
// use. Two labs that start at once get different numbers, for the kernel makes a
// link of a name only once.
func Claim(hub int) (int, error) {
	s, err := open(hub)
	if err != nil {
		return 0, err
	}
	defer s.close()
	if err := s.seal(); err != nil {
		return 0, err
	}
	used, err := usedRanges()
	if err != nil {
		return 0, err
	}
	for number := range topology.MaxNumber + 1 {
		if overlaps(topology.Range(number), used) {
			continue
		}
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: topology.LinkName(number)}, PeerName: topology.HostLink, PeerNamespace: netlink.NsFd(s.fd)}
		err := netlink.LinkAdd(pair)
		if err == nil {
			return number, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("making link %s: %w", pair.Name, err)
		}
	}
	return 0, fmt.Errorf("finding a free number for this lab: all %d are taken, or the machine routes their addresses elsewhere", topology.MaxNumber+1)
}

// usedRanges are the machine's routes but for the default ones.
func usedRanges() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("listing the machine's routes: %w", err)
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if bits, _ := r.Dst.Mask.Size(); ok && bits > 0 {
			used = append(used, netip.PrefixFrom(addr, bits))
		}
	}
	return used, nil
}

func overlaps(p netip.Prefix, others []netip.Prefix) bool {
	return slices.ContainsFunc(others, p.Overlaps)
}

// ConnectHub gives the hub its addresses and its end of the link to the machine,
// and the machine its own end and the way to the lab.
func ConnectHub(lab topology.Lab, hub int) error {
	s, err := open(hub)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: topology.NodesBridge}}); err != nil {
		return fmt.Errorf("making the bridge of the nodes: %w", err)
	}
	err = errors.Join(
		s.up("lo", host(topology.Metadata())),
		s.up(topology.NodesBridge, netip.PrefixFrom(lab.Hub(), lab.Network().Bits())),
		s.up(topology.HostLink, netip.PrefixFrom(lab.HubEnd(), 31)),
	)
	if err != nil {
		return fmt.Errorf("connecting the simulated Azure: %w", err)
	}
	machine, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	defer machine.Close()
	m := &space{Handle: machine}
	if err := errors.Join(m.up(lab.Link(), netip.PrefixFrom(lab.Host(), 31)), m.via(lab.Range(), lab.HubEnd())); err != nil {
		return fmt.Errorf("connecting the machine: %w", err)
	}
	return nil
}

// ConnectNode seals a node's namespace, then links it to the hub: the other
// nodes' pods by their nodes, the metadata service by the hub, services by its
// own kube-proxy, and nothing else by any way.
func ConnectNode(lab topology.Lab, n topology.Node, hub, node int) error {
	h, err := open(hub)
	if err != nil {
		return err
	}
	defer h.close()
	s, err := open(node)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.seal(); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.Name()}, PeerName: topology.NodeLink, PeerNamespace: netlink.NsFd(s.fd)}
	if err := h.LinkAdd(pair); err != nil {
		return fmt.Errorf("linking %s: %w", n.Name(), err)
	}
	if err := h.join(n.Name(), topology.NodesBridge); err != nil {
		return err
	}
	errs := []error{
		h.up(n.Name()),
		s.up(topology.NodeLink, netip.PrefixFrom(n.Addr(), lab.Network().Bits())),
		h.via(n.Pods(), n.Addr()),
		// Nothing answers there, but the way out must exist before NAT can change it.
		s.dev(topology.Services(), topology.NodeLink),
		s.via(host(topology.Metadata()), lab.Hub()),
	}
	for _, other := range lab.Nodes {
		if other.Number != n.Number {
			errs = append(errs, s.via(other.Pods(), other.Addr()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("connecting %s: %w", n.Name(), err)
	}
	return nil
}

func (s *space) join(name, bridge string) error {
	link, err := s.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	master, err := s.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding bridge %s: %w", bridge, err)
	}
	if err := s.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("putting %s on %s: %w", name, bridge, err)
	}
	return nil
}

// Disconnect removes the machine's link to a lab, with its address and route. A
// link that is gone is no error.
func Disconnect(number int) error {
	link, err := netlink.LinkByName(topology.LinkName(number))
	if err != nil {
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			return nil
		}
		return fmt.Errorf("finding the lab's link: %w", err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing the lab's link: %w", err)
	}
	return nil
}

// Left returns what the machine still has of a lab's network.
func Left(number int) ([]string, error) {
	var left []string
	if _, err := netlink.LinkByName(topology.LinkName(number)); err == nil {
		left = append(left, "link "+topology.LinkName(number))
	}
	used, err := usedRanges()
	for _, p := range used {
		if p.Overlaps(topology.Range(number)) {
			left = append(left, "route "+p.String())
		}
	}
	return left, err
}

func host(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
