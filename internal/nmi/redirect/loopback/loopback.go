// Package loopback has the links of a node let packets from outside through to
// loopback addresses, which the kernel refuses unless it is told otherwise for
// each link.
//
// It must never be used without the guard of the package ruleset, or the node's
// own services are open to pods.
package loopback

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

// devconfRouteLocalnet is IPV4_DEVCONF_ROUTE_LOCALNET of linux/ip.h: the number
// of the setting net.ipv4.conf.DEVICE.route_localnet in rtnetlink messages. By
// rtnetlink it can be set with CAP_NET_ADMIN alone; /proc/sys is read-only in a
// container that is not privileged.
const devconfRouteLocalnet = 26

// sizeofIfInfomsg is the length of struct ifinfomsg in bytes, which rtnetlink
// messages about links begin with.
const sizeofIfInfomsg = unix.SizeofIfInfomsg

// LinkError is a link from which connections cannot be led to a loopback
// address.
type LinkError struct {
	Link string
}

// Error names the link.
func (e *LinkError) Error() string {
	return fmt.Sprintf("link %s has route_localnet off", e.Link)
}

// link is what matters here of a network device.
type link struct {
	index         int32
	name          string
	loopback      bool
	inet          bool // the device speaks IPv4 at all
	routeLocalnet bool
}

// Set switches the setting on every link but lo and returns on how
// many it had to. A link that goes away meanwhile is none.
func Set(namespace int, on bool) (int, error) {
	conn, err := wire.Dial(unix.NETLINK_ROUTE, namespace)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	links, err := readLinks(conn)
	if err != nil {
		return 0, err
	}
	changed := 0
	var errs []error
	for _, l := range differing(links, on) {
		_, err := conn.Execute(setMessage(l.index, on))
		switch {
		case err == nil:
			changed++
		case !errors.Is(err, unix.ENODEV):
			errs = append(errs, fmt.Errorf("setting route_localnet of %s: %w", l.name, err))
		}
	}
	return changed, errors.Join(errs...)
}

// Verify returns a [*LinkError] for each link but lo on which it is off.
func Verify(namespace int) error {
	conn, err := wire.Dial(unix.NETLINK_ROUTE, namespace)
	if err != nil {
		return err
	}
	defer conn.Close()
	links, err := readLinks(conn)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range differing(links, true) {
		errs = append(errs, &LinkError{Link: l.name})
	}
	return errors.Join(errs...)
}

// differing returns the links on which the setting must be changed.
func differing(links []link, on bool) []link {
	var found []link
	for _, l := range links {
		if !l.loopback && l.inet && l.routeLocalnet != on {
			found = append(found, l)
		}
	}
	return found
}

func readLinks(conn *netlink.Conn) ([]link, error) {
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, sizeofIfInfomsg),
	})
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	links := make([]link, 0, len(answers))
	for _, answer := range answers {
		l, err := decodeLink(answer.Data)
		if err != nil {
			return nil, fmt.Errorf("reading a link: %w", err)
		}
		links = append(links, l)
	}
	return links, nil
}

// decodeLink reads struct ifinfomsg (index at byte 4, flags at byte 8) and the
// attributes behind it.
func decodeLink(data []byte) (link, error) {
	if len(data) < sizeofIfInfomsg {
		return link{}, fmt.Errorf("message is too short: %d bytes", len(data))
	}
	l := link{
		index:    int32(binary.NativeEndian.Uint32(data[4:])), //nolint:gosec // an int in the kernel too
		loopback: binary.NativeEndian.Uint32(data[8:])&unix.IFF_LOOPBACK != 0,
	}
	ad, err := netlink.NewAttributeDecoder(data[sizeofIfInfomsg:])
	if err != nil {
		return link{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case unix.IFLA_AF_SPEC:
			ad.Nested(l.decodeFamilies)
		}
	}
	return l, ad.Err()
}

func (l *link) decodeFamilies(families *netlink.AttributeDecoder) error {
	for families.Next() {
		if families.Type() == unix.AF_INET {
			families.Nested(l.decodeInet)
		}
	}
	return nil
}

// decodeInet finds the settings, which the kernel tells as an array of numbers:
// the one with the number n stands at place n-1.
func (l *link) decodeInet(inet *netlink.AttributeDecoder) error {
	for inet.Next() {
		const at = 4 * (devconfRouteLocalnet - 1)
		if conf := inet.Bytes(); inet.Type() == unix.IFLA_INET_CONF && len(conf) >= at+4 {
			l.inet = true
			l.routeLocalnet = binary.NativeEndian.Uint32(conf[at:]) != 0
		}
	}
	return nil
}

// setMessage asks for one setting of one link; unlike in what the kernel tells,
// settings are attributes there.
func setMessage(index int32, on bool) netlink.Message {
	var value uint32
	if on {
		value = 1
	}
	setting := wire.Nested(unix.IFLA_AF_SPEC, wire.Nested(unix.AF_INET, wire.Nested(unix.IFLA_INET_CONF,
		wire.Encode(devconfRouteLocalnet, binary.NativeEndian.AppendUint32(nil, value)))))
	data := make([]byte, sizeofIfInfomsg, sizeofIfInfomsg+len(setting))
	binary.NativeEndian.PutUint32(data[4:], uint32(index)) //nolint:gosec // never negative
	return netlink.Message{
		Header: netlink.Header{Type: unix.RTM_SETLINK, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(data, setting...),
	}
}
