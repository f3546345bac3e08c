package link

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var podAddr = netip.MustParseAddr("10.0.0.2")

// device is a link with an index, a name and a kind.
func device(index int, name, kind string) Event {
	return Event{Kind: Seen, Link: index, Device: Device{Index: index, Name: name, Kind: kind}}
}

func viewOf(events ...Event) view {
	v := newView()
	for _, e := range events {
		v.apply(e)
	}
	return v
}

func TestPath(t *testing.T) {
	mac := MAC{2, 0, 0, 0, 0, 2}
	bridge, port := device(1, "br0", "bridge"), device(2, "veth2", "veth")
	neighbour := Event{Kind: Neighbour, Link: 1, Addr: podAddr, MAC: mac}
	heard := Event{Kind: Port, Bridge: 1, Link: 2, MAC: mac}
	known := []Event{bridge, port, neighbour, heard}
	for name, test := range map[string]struct {
		events []Event
		route  route
		want   Path
		why    string
	}{
		"a veth of its own":                  {[]Event{port}, route{link: 2, bits: 32}, Path{Proof: PerLink, Link: 2, Name: "veth2"}, ""},
		"a veth with an address at each end": {[]Event{port}, route{link: 2, bits: 31}, Path{Proof: PerLink, Link: 2, Name: "veth2"}, ""},
		"a veth to a whole subnet":           {[]Event{port}, route{link: 2, bits: 24}, Path{Proof: IPOnly}, "all of a /24"},
		"a netkit of its own":                {[]Event{device(2, "nk", "netkit")}, route{link: 2, bits: 32}, Path{Proof: PerLink, Link: 2, Name: "nk"}, ""},
		"hardware":                           {[]Event{device(2, "eth0", "")}, route{link: 2, bits: 32}, Path{Proof: IPOnly}, "eth0"},
		"by a router":                        {[]Event{port}, route{link: 2, bits: 32, via: true}, Path{Proof: IPOnly}, "router"},
		"the node's own":                     {[]Event{device(1, "lo", "")}, route{link: 1, bits: 32, local: true}, Path{Proof: IPOnly}, "node's own"},
		"no route":                           {nil, route{}, Path{Proof: IPOnly}, "no route"},
		"a port of a bridge":                 {known, route{link: 1, bits: 24}, Path{Proof: PerPort, Link: 2, Name: "veth2", MAC: mac}, ""},
		"nobody was asked":                   {[]Event{bridge, port, heard}, route{link: 1, bits: 24}, Path{Proof: PerPort}, "nobody"},
		"a MAC at no port":                   {[]Event{bridge, port, neighbour}, route{link: 1, bits: 24}, Path{Proof: PerPort, MAC: mac}, "which port"},
		"a MAC at a port of another bridge":  {append(slices.Clone(known[:3]), Event{Kind: Port, Bridge: 9, Link: 2, MAC: mac}), route{link: 1, bits: 24}, Path{Proof: PerPort, MAC: mac}, "which port"},
		"a neighbour that was lost":          {append(slices.Clone(known), Event{Kind: NeighbourLost, Link: 1, Addr: podAddr}), route{link: 1, bits: 24}, Path{Proof: PerPort}, "nobody"},
		"a port that was forgotten":          {append(slices.Clone(known), Event{Kind: PortLost, Bridge: 1, Link: 2, MAC: mac}), route{link: 1, bits: 24}, Path{Proof: PerPort, MAC: mac}, "which port"},
		"forgotten where it was before":      {append(slices.Clone(known), Event{Kind: PortLost, Bridge: 1, Link: 7, MAC: mac}), route{link: 1, bits: 24}, Path{Proof: PerPort, Link: 2, Name: "veth2", MAC: mac}, ""},
		"a port that is gone":                {append(slices.Clone(known), Event{Kind: Gone, Link: 2}), route{link: 1, bits: 24}, Path{Proof: PerPort, MAC: mac}, "which port"},
		"a bridge that is gone":              {append(slices.Clone(known), Event{Kind: Gone, Link: 1}), route{link: 1, bits: 24}, Path{Proof: IPOnly}, "no route"},
		"a port that leads further":          {[]Event{bridge, device(2, "vxlan0", "vxlan"), neighbour, heard}, route{link: 1, bits: 24}, Path{Proof: IPOnly, Shared: true}, "more than one pod"},
		"Open vSwitch":                       {[]Event{device(1, "ovs0", "openvswitch")}, route{link: 1, bits: 24}, Path{Proof: IPOnly, Shared: true}, "ovs0"},
		"macvlan":                            {[]Event{device(1, "shim", "macvlan")}, route{link: 1, bits: 32}, Path{Proof: IPOnly, Shared: true}, "shim"},
	} {
		t.Run(name, func(t *testing.T) {
			got := viewOf(test.events...).path(podAddr, test.route)
			if !strings.Contains(got.Why, test.why) || (got.Why == "") != (test.why == "") {
				t.Errorf("why: %q, want words of %q", got.Why, test.why)
			}
			got.Why = ""
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A link that changes is as old as it was.
func TestALinksAge(t *testing.T) {
	first, later := time.Unix(1, 0), time.Unix(2, 0)
	e := device(1, "veth1", "veth")
	e.Device.born, e.Device.old = first, true
	v := viewOf(e)
	e.Device.born, e.Device.old, e.Device.Name = later, false, "renamed"
	v.apply(e)
	if got := v.devices[1]; got.born != first || !got.old || got.Name != "renamed" {
		t.Errorf("got %+v", got)
	}
}

func TestReplaced(t *testing.T) {
	first, later := time.Unix(1, 0), time.Unix(2, 0)
	stays, goes, comes := device(1, "stays", "veth"), device(2, "goes", "veth"), device(3, "comes", "veth")
	for _, e := range []*Event{&stays, &goes, &comes} {
		e.Device.born = first
	}
	before, fresh := viewOf(stays, goes), viewOf(stays, comes)
	events := before.replaced(fresh, later)
	if diff := cmp.Diff([]Event{{Kind: Missed}, {Kind: Gone, Link: 2}}, events, cmp.AllowUnexported(Device{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if fresh.devices[1].born != first || fresh.devices[3].born != later {
		t.Errorf("got %+v", fresh.devices)
	}
}

// message is a message of rtnetlink with a header of a size.
func message(size int, set func([]byte), attrs ...netlink.Attribute) []byte {
	header := make([]byte, size)
	set(header)
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err)
	}
	return slices.Concat(header, body)
}

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func neighbourMessage(family byte, link uint32, state uint16, attrs ...netlink.Attribute) []byte {
	return message(sizeofNeighbourMessage, func(h []byte) {
		h[0] = family
		binary.NativeEndian.PutUint32(h[4:], link)
		binary.NativeEndian.PutUint16(h[8:], state)
	}, attrs...)
}

func linkMessage(family byte, link uint32, attrs ...netlink.Attribute) []byte {
	return message(sizeofLinkMessage, func(h []byte) {
		h[0] = family
		binary.NativeEndian.PutUint32(h[4:], link)
	}, attrs...)
}

func nest(attrs ...netlink.Attribute) []byte {
	return message(0, func([]byte) {}, attrs...)
}

func TestDecode(t *testing.T) {
	mac := MAC{2, 0, 0, 0, 0, 2}
	dst := netlink.Attribute{Type: unix.NDA_DST, Data: podAddr.AsSlice()}
	lladdr := netlink.Attribute{Type: unix.NDA_LLADDR, Data: mac[:]}
	master := netlink.Attribute{Type: unix.NDA_MASTER, Data: number(7)}
	name := netlink.Attribute{Type: unix.IFLA_IFNAME, Data: []byte("veth1\x00")}
	info := netlink.Attribute{Type: unix.IFLA_LINKINFO, Data: nest(netlink.Attribute{Type: unix.IFLA_INFO_KIND, Data: []byte("veth\x00")})}
	for label, test := range map[string]struct {
		kind uint16
		data []byte
		want *Event
	}{
		"a link": {unix.RTM_NEWLINK, linkMessage(0, 5, name, info, netlink.Attribute{Type: unix.IFLA_MASTER, Data: number(7)},
			netlink.Attribute{Type: unix.IFLA_XDP, Data: nest(netlink.Attribute{Type: unix.IFLA_XDP_ATTACHED, Data: []byte{2}})}),
			&Event{Kind: Seen, Link: 5, Device: Device{Index: 5, Name: "veth1", Kind: "veth", Master: 7, XDP: true}}},
		"hardware":                       {unix.RTM_NEWLINK, linkMessage(0, 5, name), &Event{Kind: Seen, Link: 5, Device: Device{Index: 5, Name: "veth1"}}},
		"a link that goes":               {unix.RTM_DELLINK, linkMessage(0, 5, name), &Event{Kind: Gone, Link: 5}},
		"a port that leaves its bridge":  {unix.RTM_DELLINK, linkMessage(unix.AF_BRIDGE, 5, name), nil},
		"a neighbour":                    {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_INET, 7, unix.NUD_STALE, dst, lladdr), &Event{Kind: Neighbour, Link: 7, Addr: podAddr, MAC: mac}},
		"a neighbour that is looked for": {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_INET, 7, unix.NUD_INCOMPLETE, dst), &Event{Kind: NeighbourLost, Link: 7, Addr: podAddr}},
		"one that does not answer":       {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_INET, 7, unix.NUD_FAILED, dst, lladdr), &Event{Kind: NeighbourLost, Link: 7, Addr: podAddr, MAC: mac}},
		"a neighbour that goes":          {unix.RTM_DELNEIGH, neighbourMessage(unix.AF_INET, 7, unix.NUD_STALE, dst, lladdr), &Event{Kind: NeighbourLost, Link: 7, Addr: podAddr, MAC: mac}},
		"a neighbour by IPv6":            {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_INET6, 7, unix.NUD_STALE, lladdr), nil},
		"a neighbour without an address": {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_INET, 7, unix.NUD_STALE, lladdr), nil},
		"a port":                         {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_BRIDGE, 5, unix.NUD_REACHABLE, lladdr, master), &Event{Kind: Port, Link: 5, Bridge: 7, MAC: mac}},
		"a port that is forgotten":       {unix.RTM_DELNEIGH, neighbourMessage(unix.AF_BRIDGE, 5, unix.NUD_STALE, lladdr, master), &Event{Kind: PortLost, Link: 5, Bridge: 7, MAC: mac}},
		"what a card knows by itself":    {unix.RTM_NEWNEIGH, neighbourMessage(unix.AF_BRIDGE, 5, unix.NUD_PERMANENT, lladdr), nil},
		"a route":                        {unix.RTM_DELROUTE, nil, &Event{Kind: Routed}},
		"a rule":                         {unix.RTM_NEWRULE, nil, &Event{Kind: Routed}},
		"something else":                 {unix.RTM_NEWADDR, nil, nil},
	} {
		t.Run(label, func(t *testing.T) {
			got, matters, err := decode(test.kind, test.data)
			if err != nil || matters != (test.want != nil) {
				t.Fatalf("got %+v, %v, %v", got, matters, err)
			}
			if matters && got != *test.want {
				t.Errorf("got %+v, want %+v", got, *test.want)
			}
		})
	}
	for _, kind := range []uint16{unix.RTM_NEWLINK, unix.RTM_NEWNEIGH} {
		if _, _, err := decode(kind, make([]byte, 11)); err == nil {
			t.Errorf("message %d of 11 bytes is read", kind)
		}
	}
}

func TestDecodeRoute(t *testing.T) {
	header := func(bits, kind byte) func([]byte) {
		return func(h []byte) { h[routeBits], h[routeType] = bits, kind }
	}
	oif := netlink.Attribute{Type: unix.RTA_OIF, Data: number(5)}
	for name, test := range map[string]struct {
		data []byte
		want route
	}{
		"to a link":   {message(sizeofRouteMessage, header(32, unix.RTN_UNICAST), oif), route{link: 5, bits: 32}},
		"by a router": {message(sizeofRouteMessage, header(0, unix.RTN_UNICAST), oif, netlink.Attribute{Type: unix.RTA_GATEWAY, Data: number(1)}), route{link: 5, via: true}},
		"by several":  {message(sizeofRouteMessage, header(0, unix.RTN_UNICAST), netlink.Attribute{Type: unix.RTA_MULTIPATH}), route{via: true}},
		"to itself":   {message(sizeofRouteMessage, header(32, unix.RTN_LOCAL), oif), route{link: 5, bits: 32, local: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeRoute(test.data)
			if err != nil || got != test.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	if _, err := decodeRoute(make([]byte, 5)); err == nil {
		t.Error("a message that is too short is read")
	}
}

// Announcements come from the kernel, and still nothing in them can break the
// reader or make up a link without an index.
func FuzzDecode(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWLINK), linkMessage(0, 5))
	f.Add(uint16(unix.RTM_NEWNEIGH), neighbourMessage(unix.AF_BRIDGE, 5, 2, netlink.Attribute{Type: unix.NDA_MASTER, Data: number(7)}))
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		event, matters, err := decode(kind, data)
		if err != nil && matters {
			t.Errorf("%+v matters although %v", event, err)
		}
		viewOf(event).path(podAddr, route{link: event.Link, bits: 32})
		_, _ = decodeRoute(data)
		_, _ = decodeAll(data)
	})
}
