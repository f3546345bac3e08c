package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// dump reads all links, neighbours and ports. Whatever is there now was there
// before anybody looked.
func (t *Table) dump() (view, error) {
	out := newView()
	neighbours, ports := make([]byte, sizeofNeighbourMessage), make([]byte, sizeofNeighbourMessage)
	neighbours[0], ports[0] = unix.AF_INET, unix.AF_BRIDGE
	for _, ask := range []struct {
		what string
		kind netlink.HeaderType
		data []byte
	}{
		{"links", unix.RTM_GETLINK, make([]byte, sizeofLinkMessage)},
		{"neighbours", unix.RTM_GETNEIGH, neighbours},
		{"ports of bridges", unix.RTM_GETNEIGH, ports},
	} {
		answers, err := t.ask.Execute(netlink.Message{
			Header: netlink.Header{Type: ask.kind, Flags: netlink.Request | netlink.Dump}, Data: ask.data,
		})
		if err != nil {
			return view{}, fmt.Errorf("listing %s: %w", ask.what, err)
		}
		for _, answer := range answers {
			event, matters, err := decode(uint16(answer.Header.Type), answer.Data)
			if err != nil {
				return view{}, err
			}
			if matters {
				event.Device.born, event.Device.old = t.options.Now(), true
				out.apply(event)
			}
		}
	}
	return out, nil
}

// Fields of struct rtmsg, by their place in bytes.
const (
	sizeofRouteMessage = unix.SizeofRtMsg
	routeBits          = 1
	routeType          = 7
	routeFlags         = 8
)

// route asks which route the kernel would take, as it is written down: not the
// one address, but the prefix that matched.
func (t *Table) route(addr netip.Addr) (route, error) {
	data := make([]byte, sizeofRouteMessage)
	data[0], data[routeBits] = unix.AF_INET, uint8(addr.BitLen()) //nolint:gosec // 32
	binary.NativeEndian.PutUint32(data[routeFlags:], unix.RTM_F_FIB_MATCH)
	destination, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.RTA_DST, Data: addr.AsSlice()}})
	if err != nil {
		return route{}, fmt.Errorf("asking for the route to %s: %w", addr, err)
	}
	answers, err := t.ask.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request}, Data: slices.Concat(data, destination),
	})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EACCES):
		return route{}, nil // there is none, or it says not to go
	case err != nil:
		return route{}, fmt.Errorf("asking for the route to %s: %w", addr, err)
	case len(answers) == 0:
		return route{}, fmt.Errorf("asking for the route to %s: the kernel does not answer", addr)
	}
	return decodeRoute(answers[0].Data)
}

func decodeRoute(data []byte) (route, error) {
	if len(data) < sizeofRouteMessage {
		return route{}, fmt.Errorf("reading a route: message is too short: %d bytes", len(data))
	}
	out := route{bits: int(data[routeBits]), local: data[routeType] == unix.RTN_LOCAL}
	err := attributes(data[sizeofRouteMessage:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.RTA_OIF:
			out.link = index(ad.Bytes())
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			out.via = true
		}
	})
	if err != nil {
		return route{}, fmt.Errorf("reading a route: %w", err)
	}
	return out, nil
}

// Resolve has the kernel ask who has an address, if it is one of a bridge. The
// answer comes as an event.
func (t *Table) Resolve(addr netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ask == nil || !addr.Is4() {
		return nil
	}
	r, err := t.route(addr)
	if err != nil || r.local || r.via || t.view.devices[r.link].Kind != "bridge" {
		return err
	}
	data := make([]byte, sizeofNeighbourMessage)
	data[0], data[10] = unix.AF_INET, unix.NTF_USE
	binary.NativeEndian.PutUint32(data[4:], uint32(r.link)) //nolint:gosec // never negative
	who, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NDA_DST, Data: addr.AsSlice()}})
	if err != nil {
		return fmt.Errorf("asking who has %s: %w", addr, err)
	}
	_, err = t.ask.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWNEIGH, Flags: netlink.Request | netlink.Acknowledge | netlink.Create},
		Data:   slices.Concat(data, who),
	})
	if err != nil {
		return fmt.Errorf("asking who has %s: %w", addr, err)
	}
	return nil
}
