// Package spoof is a pod that takes the addresses of its neighbours on a shared
// segment, by ARP and by their MAC.
//
// It acts within the network namespace that it is given and on the segment that
// this is linked to, both made by a test. It must not flood: what it sends is one
// frame at a time.
package spoof

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// Spoofer is a link of a pod, and what it says that it is.
type Spoofer struct {
	ns   *netns.NS
	name string
	link int
	mac  net.HardwareAddr
	own  netip.Prefix
	fd   int // an AF_PACKET socket in the namespace
}

// New makes a spoofer of the link of a namespace that has the address own. It
// needs CAP_NET_ADMIN and CAP_NET_RAW, of which pods usually have the second.
func New(ns *netns.NS, name string, own netip.Prefix) (*Spoofer, error) {
	s := &Spoofer{ns: ns, name: name, own: own}
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		s.link, s.mac = link.Attrs().Index, link.Attrs().HardwareAddr
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("preparing to spoof in %s: %w", ns.Name(), err)
	}
	return s, nil
}

// Close lets go of the link and leaves it as it is.
func (s *Spoofer) Close() error { return unix.Close(s.fd) }

// Take gives the link an address in the place of the one it has. Routes that went
// by the old one are gone.
func (s *Spoofer) Take(victim netip.Prefix) error {
	if err := errors.Join(s.ns.DeleteAddr(s.name, s.own), s.ns.AddAddr(s.name, victim)); err != nil {
		return err
	}
	s.own = victim
	return nil
}

// TakeMAC gives the link the MAC of somebody else.
func (s *Spoofer) TakeMAC(mac net.HardwareAddr) error {
	err := s.ns.Do(func() error {
		link, err := netlink.LinkByIndex(s.link)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, mac)
	})
	if err != nil {
		return fmt.Errorf("taking the MAC %s in %s: %w", mac, s.ns.Name(), err)
	}
	s.mac = mac
	return nil
}

// Claim tells everybody on the segment, unasked, that an IPv4 address is at the
// spoofer's MAC (RFC 826).
func (s *Spoofer) Claim(address netip.Addr) error {
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := make([]byte, 0, 42)
	frame = append(append(append(frame, everybody...), s.mac...), 0x08, 0x06)
	frame = append(frame, 0, 1, 8, 0, 6, 4, 0, 2) // Ethernet, IPv4, a reply
	frame = append(append(frame, s.mac...), address.AsSlice()...)
	frame = append(append(frame, everybody...), address.AsSlice()...)
	to := &unix.SockaddrLinklayer{Ifindex: s.link, Halen: 6, Protocol: binary.NativeEndian.Uint16([]byte{0x08, 0x06})}
	if err := unix.Sendto(s.fd, frame, 0, to); err != nil {
		return fmt.Errorf("claiming %s in %s: %w", address, s.ns.Name(), err)
	}
	return nil
}

// MAC returns the MAC of a link.
func MAC(ns *netns.NS, name string) (mac net.HardwareAddr, err error) {
	err = ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s in %s: %w", name, ns.Name(), err)
		}
		mac = link.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}
