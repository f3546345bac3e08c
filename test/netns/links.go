package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair.
type End struct {
	NS   *NS
	Link string // the name of the link in NS, at most 15 bytes

	// Addr is the address of the link with the length of its subnet. The zero
	// value gives the link none.
	Addr netip.Prefix

	// Bridge is a bridge in NS to which the end is attached; "" for none.
	Bridge string
}

// Connect joins two namespaces by a veth pair, both ends up. If it fails, the
// pair is gone.
func Connect(a, b End) error {
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: a.Link},
		PeerName:      b.Link,
		PeerNamespace: netlink.NsFd(b.NS.fd),
	}
	if err := a.NS.addLink(pair); err != nil {
		return err
	}
	deletePeer := closerFunc(func() error { return b.NS.DeleteLink(b.Link) })
	if err := errors.Join(b.NS.onClose(deletePeer), a.configure(), b.configure()); err != nil {
		return errors.Join(err, a.NS.DeleteLink(a.Link))
	}
	return nil
}

func (e End) configure() error {
	if e.Bridge != "" {
		if err := e.NS.attach(e.Link, e.Bridge); err != nil {
			return err
		}
	}
	if e.Addr.IsValid() {
		if err := e.NS.AddAddr(e.Link, e.Addr); err != nil {
			return err
		}
	}
	return e.NS.up(e.Link)
}

// AddBridge makes a bridge that is up and holds addr.
func (n *NS) AddBridge(name string, addr netip.Prefix) error {
	if err := n.addLink(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
		return err
	}
	if err := (End{NS: n, Link: name, Addr: addr}).configure(); err != nil {
		return errors.Join(err, n.DeleteLink(name))
	}
	return nil
}

// AddAddr gives a link one more address with the length of its subnet.
func (n *NS) AddAddr(link string, addr netip.Prefix) error {
	l, err := n.link(link)
	if err != nil {
		return err
	}
	if err := n.handle.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("adding %s to %s in %s: %w", addr, link, n.name, err)
	}
	return nil
}

// Index returns the index of a link.
func (n *NS) Index(link string) (int, error) {
	l, err := n.link(link)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// DeleteAddr takes an address from a link. Without 127.0.0.1/8 on lo, the
// namespace sends what is for loopback where its routes say.
func (n *NS) DeleteAddr(link string, addr netip.Prefix) error {
	l, err := n.link(link)
	if err != nil {
		return err
	}
	if err := n.handle.AddrDel(l, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("deleting %s from %s in %s: %w", addr, link, n.name, err)
	}
	return nil
}

// DeleteLink removes a link, and with a veth its peer. A link that is already
// gone is not an error: its peer may have taken it along.
func (n *NS) DeleteLink(name string) error {
	l, err := n.handle.LinkByName(name)
	if err != nil {
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			return nil
		}
		return fmt.Errorf("finding link %s in %s: %w", name, n.name, err)
	}
	if err := n.handle.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting link %s in %s: %w", name, n.name, err)
	}
	return nil
}

// SetRoute sends what is for dst to the router via, in place of any route for
// dst that is there. This is also how the blackhole of the metadata address is
// opened in the one namespace that is meant to reach a simulated service.
func (n *NS) SetRoute(dst netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}
	if err := n.handle.RouteReplace(route); err != nil {
		return fmt.Errorf("routing %s via %s in %s: %w", dst, via, n.name, err)
	}
	return nil
}

// SetSysctl writes a setting of the namespace's own, such as
// net.ipv4.ip_forward. Only net.* belongs to a network namespace, so anything
// else is refused; an interface name that holds a dot is written with / between
// all parts of the key.
func (n *NS) SetSysctl(key, value string) error {
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	return n.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
}

// Sysctl reads what [NS.SetSysctl] writes.
func (n *NS) Sysctl(key string) (string, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	var value []byte
	err = n.Do(func() error {
		value, err = os.ReadFile(path) //nolint:gosec // below /proc/sys/net, see sysctlPath
		return err
	})
	return strings.TrimSpace(string(value)), err
}

func sysctlPath(key string) (string, error) {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	if filepath.Clean(key) != key || !strings.HasPrefix(key, "net/") {
		return "", fmt.Errorf("sysctl %s: only net.* belongs to a network namespace", key)
	}
	return filepath.Join("/proc/sys", key), nil
}

func (n *NS) addLink(l netlink.Link) error {
	name := l.Attrs().Name
	if err := n.handle.LinkAdd(l); err != nil {
		return fmt.Errorf("adding %s %s to %s: %w", l.Type(), name, n.name, privileged(err))
	}
	return n.onClose(closerFunc(func() error { return n.DeleteLink(name) }))
}

func (n *NS) link(name string) (netlink.Link, error) {
	l, err := n.handle.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("finding link %s in %s: %w", name, n.name, err)
	}
	return l, nil
}

func (n *NS) attach(link, bridge string) error {
	l, err := n.link(link)
	if err != nil {
		return err
	}
	b, err := n.link(bridge)
	if err != nil {
		return err
	}
	if err := n.handle.LinkSetMaster(l, b); err != nil {
		return fmt.Errorf("attaching %s to %s in %s: %w", link, bridge, n.name, err)
	}
	return nil
}

func (n *NS) up(link string) error {
	l, err := n.link(link)
	if err != nil {
		return err
	}
	if err := n.handle.LinkSetUp(l); err != nil {
		return fmt.Errorf("setting %s up in %s: %w", link, n.name, err)
	}
	return nil
}
