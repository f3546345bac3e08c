// Package link tells by which of the node's links an address is reached, as the
// kernel's own tables have it at this moment: the route, and on a bridge the
// neighbour and the port behind which it was last heard.
//
// What the kernel says is judged by pure functions of [view]; [Table] keeps that
// up to date. Which pod has an address is none of its business, and it must not
// learn: it must only be asked by whoever knows.
package link

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Proof is what ties an address to a pod, beside the address itself.
type Proof string

// The proofs, from the strongest to none.
const (
	// PerLink: the pod has a link of its own, and the node sends what is for the
	// address there. Whoever completes a connection is behind it.
	PerLink Proof = "link"
	// PerPort: pods share a bridge, and each has a port of its own.
	PerPort Proof = "bridge-port"
	// IPOnly: nothing but the address. Whoever can speak from it, and hear what is
	// for it, is taken for the pod.
	IPOnly Proof = "ip-only"
)

// MAC is an address of the link layer.
type MAC [6]byte

// String writes it as usual.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Path is how the node reaches an address.
type Path struct {
	Proof Proof
	// Link is the index of the pod's own link or port. Zero, with a proof, means
	// that the kernel does not know at this moment: it has to ask first.
	Link int
	Name string
	// MAC is the pod's on a bridge.
	MAC MAC
	// Born is when the link was first seen; Old says that it was there before
	// anybody looked, so that Born is only the latest that it can be.
	Born time.Time
	Old  bool
	// Shared says that pods share a segment on which one can take another's
	// address, and nothing shows which one speaks.
	Shared bool
	// Why says in words what stands in the way of a better proof.
	Why string
}

// Known reports whether the path names a link.
func (p Path) Known() bool { return p.Proof != IPOnly && p.Link != 0 }

// Device is what matters of a link.
type Device struct {
	Index int
	Name  string
	// Kind is the kernel's name of the driver, such as veth; empty for hardware.
	Kind string
	// Master is the index of the bridge, or the like, that it is a port of.
	Master int
	// XDP says that a BPF program takes packets before the kernel's own network
	// does.
	XDP bool

	born time.Time
	old  bool
}

// route is what the kernel answers when it is asked for an address.
type route struct {
	link int
	// bits is the length of the prefix that matched.
	bits int
	// via says that the next hop is a router: the address is not on the link.
	via bool
	// local says that the address is the node's own.
	local bool
}

type neighbourKey struct {
	link int
	addr netip.Addr
}

type portKey struct {
	bridge int
	mac    MAC
}

// view is what the kernel said of links, neighbours and bridge ports.
type view struct {
	devices    map[int]Device
	neighbours map[neighbourKey]MAC
	ports      map[portKey]int
}

func newView() view {
	return view{devices: map[int]Device{}, neighbours: map[neighbourKey]MAC{}, ports: map[portKey]int{}}
}

// ownBits is the shortest prefix of a link with two ends.
const ownBits = 30

// own reports whether a link of this kind has one pod at its other end.
func own(kind string) bool { return slices.Contains([]string{"veth", "netkit", "tun"}, kind) }

// segment reports whether links of this kind connect many, and show nothing of
// which one speaks.
func segment(kind string) bool { return slices.Contains([]string{"openvswitch", "macvlan"}, kind) }

// path judges how an address is reached.
func (v view) path(addr netip.Addr, r route) Path {
	device, ok := v.devices[r.link]
	switch {
	case r.local:
		return ipOnly("the address is one of the node's own")
	case !ok:
		return ipOnly("there is no route to the address")
	case r.via:
		return ipOnly("the route to the address goes by link %s through a router", device.Name)
	case device.Kind == "bridge":
		return v.behind(device, addr)
	case segment(device.Kind):
		out := ipOnly("pods share link %s of kind %s, which does not show which one speaks", device.Name, device.Kind)
		out.Shared = true
		return out
	case !own(device.Kind):
		return ipOnly("the route to the address goes by link %s of kind %q, which is no pod's own", device.Name, device.Kind)
	case r.bits < ownBits:
		return ipOnly("link %s leads to all of a /%d", device.Name, r.bits)
	}
	return device.to(PerLink)
}

// behind finds the port of a bridge behind which an address was last heard.
func (v view) behind(bridge Device, addr netip.Addr) Path {
	mac, ok := v.neighbours[neighbourKey{bridge.Index, addr}]
	if !ok {
		return Path{Proof: PerPort, Why: fmt.Sprintf("nobody on bridge %s was asked for the address yet", bridge.Name)}
	}
	port, ok := v.devices[v.ports[portKey{bridge.Index, mac}]]
	if !ok {
		return Path{Proof: PerPort, MAC: mac, Why: fmt.Sprintf("bridge %s does not know at which port %s is", bridge.Name, mac)}
	}
	if !own(port.Kind) {
		out := ipOnly("port %s of bridge %s, of kind %q, leads to more than one pod", port.Name, bridge.Name, port.Kind)
		out.Shared = true
		return out
	}
	out := port.to(PerPort)
	out.MAC = mac
	return out
}

func (d Device) to(proof Proof) Path {
	return Path{Proof: proof, Link: d.Index, Name: d.Name, Born: d.born, Old: d.old}
}

func ipOnly(format string, args ...any) Path {
	return Path{Proof: IPOnly, Why: fmt.Sprintf(format, args...)}
}
