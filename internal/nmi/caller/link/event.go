package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Kind is what an [Event] is about.
type Kind int

// The kinds of events.
const (
	// Seen: a link is there, new or changed.
	Seen Kind = iota + 1
	// Gone: a link is no more. Its index is not given again.
	Gone
	// Neighbour: an address of a link has this MAC.
	Neighbour
	// NeighbourLost: nobody knows the MAC of an address any more.
	NeighbourLost
	// Port: a bridge has heard the MAC at this port.
	Port
	// PortLost: a bridge has forgotten the port of a MAC.
	PortLost
	// Routed: some route or rule has changed.
	Routed
	// Missed: the kernel had more to say than anybody listened to.
	Missed
)

// Event is one change of the kernel's tables.
type Event struct {
	Kind Kind
	// Link is the link that the event is about: for neighbours that on which they
	// are, for ports the port itself.
	Link int
	// Bridge is that of a port.
	Bridge int
	Addr   netip.Addr
	MAC    MAC
	Device Device
}

// Sizes of the kernel's structs, in bytes.
const (
	sizeofLinkMessage      = unix.SizeofIfInfomsg
	sizeofNeighbourMessage = 12 // struct ndmsg
)

// resolved are the states of a neighbour whose MAC is known.
const resolved = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT | unix.NUD_NOARP

// decode reads one message of rtnetlink; false if it says nothing that matters.
func decode(kind uint16, data []byte) (Event, bool, error) {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return decodeLink(kind, data)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return decodeNeighbour(kind, data)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return Event{Kind: Routed}, true, nil
	}
	return Event{}, false, nil
}

// decodeLink reads struct ifinfomsg and its attributes. What bridges say of their
// ports comes as a message of another family, and is not about the link.
func decodeLink(kind uint16, data []byte) (Event, bool, error) {
	if len(data) < sizeofLinkMessage {
		return Event{}, false, fmt.Errorf("reading a link: message is too short: %d bytes", len(data))
	}
	if data[0] != unix.AF_UNSPEC {
		return Event{}, false, nil
	}
	device := Device{Index: index(data[4:])}
	if kind == unix.RTM_DELLINK {
		return Event{Kind: Gone, Link: device.Index}, true, nil
	}
	err := attributes(data[sizeofLinkMessage:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			device.Name = ad.String()
		case unix.IFLA_MASTER:
			device.Master = index(ad.Bytes())
		case unix.IFLA_LINKINFO:
			ad.Nested(device.decodeInfo)
		case unix.IFLA_XDP:
			ad.Nested(device.decodeXDP)
		}
	})
	if err != nil {
		return Event{}, false, fmt.Errorf("reading a link: %w", err)
	}
	return Event{Kind: Seen, Link: device.Index, Device: device}, true, nil
}

func (d *Device) decodeInfo(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == unix.IFLA_INFO_KIND {
			d.Kind = ad.String()
		}
	}
	return nil
}

func (d *Device) decodeXDP(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == unix.IFLA_XDP_ATTACHED {
			d.XDP = ad.Uint8() != 0
		}
	}
	return nil
}

// decodeNeighbour reads struct ndmsg: the family at byte 0, the link at 4, the
// state at 8.
func decodeNeighbour(kind uint16, data []byte) (Event, bool, error) {
	if len(data) < sizeofNeighbourMessage {
		return Event{}, false, fmt.Errorf("reading a neighbour: message is too short: %d bytes", len(data))
	}
	known := kind == unix.RTM_NEWNEIGH
	out := Event{Link: index(data[4:])}
	var hasMAC bool
	err := attributes(data[sizeofNeighbourMessage:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NDA_DST:
			out.Addr, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.NDA_LLADDR:
			hasMAC = len(ad.Bytes()) == len(out.MAC)
			copy(out.MAC[:], ad.Bytes())
		case unix.NDA_MASTER:
			out.Bridge = index(ad.Bytes())
		}
	})
	if err != nil {
		return Event{}, false, fmt.Errorf("reading a neighbour: %w", err)
	}
	switch data[0] {
	case unix.AF_INET:
		known = known && hasMAC && binary.NativeEndian.Uint16(data[8:])&resolved != 0
		out.Kind = either(known, Neighbour, NeighbourLost)
		return out, out.Addr.Is4(), nil
	case unix.AF_BRIDGE:
		out.Kind = either(known, Port, PortLost)
		return out, hasMAC && out.Bridge != 0, nil
	}
	return Event{}, false, nil
}

func either(first bool, a, b Kind) Kind {
	if first {
		return a
	}
	return b
}

// index reads the index of a link, an int of the machine's own order. What is too
// short has none.
func index(data []byte) int {
	if len(data) < 4 {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(data))) //nolint:gosec // an int in the kernel too
}

func attributes(data []byte, read func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	for ad.Next() {
		read(ad)
	}
	return ad.Err()
}

// apply changes the view as an event says. Links that are seen for the first time
// keep when, and whether they were there before.
func (v view) apply(e Event) {
	switch e.Kind {
	case Seen:
		if before, ok := v.devices[e.Link]; ok {
			e.Device.born, e.Device.old = before.born, before.old
		}
		v.devices[e.Link] = e.Device
	case Gone:
		v.forget(e.Link)
	case Neighbour:
		v.neighbours[neighbourKey{e.Link, e.Addr}] = e.MAC
	case NeighbourLost:
		delete(v.neighbours, neighbourKey{e.Link, e.Addr})
	case Port:
		v.ports[portKey{e.Bridge, e.MAC}] = e.Link
	case PortLost:
		key := portKey{e.Bridge, e.MAC}
		if v.ports[key] == e.Link {
			delete(v.ports, key)
		}
	}
}

// forget takes everything that was known of a link.
func (v view) forget(gone int) {
	delete(v.devices, gone)
	for key := range v.neighbours {
		if key.link == gone {
			delete(v.neighbours, key)
		}
	}
	for key, port := range v.ports {
		if key.bridge == gone || port == gone {
			delete(v.ports, key)
		}
	}
}
