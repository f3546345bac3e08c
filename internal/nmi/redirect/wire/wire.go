// Package wire speaks netlink with the kernel about the tables of the redirect: it
// reads them, replaces them between two packets, and understands what is announced
// of them.
//
// The nftables package has no tables with flags, and drops expressions that it
// does not know. What the tables should be is not known here: this package must
// not decide, only tell and do.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Dial opens a socket of a family of netlink in a network namespace, 0 for the
// thread's own.
func Dial(family, namespace int) (*netlink.Conn, error) {
	conn, err := netlink.Dial(family, &netlink.Config{NetNS: namespace})
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return conn, nil
}

// Subscribe opens a socket that receives what is announced to groups.
func Subscribe(family, namespace int, groups ...uint32) (*netlink.Conn, error) {
	conn, err := Dial(family, namespace)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		if err := conn.JoinGroup(group); err != nil {
			return nil, errors.Join(fmt.Errorf("joining netlink group %d: %w", group, err), conn.Close())
		}
	}
	return conn, nil
}

// PortOf returns the number by which the kernel knows a socket.
func PortOf(conn *netlink.Conn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("reading the number of a netlink socket: %w", err)
	}
	var name unix.Sockaddr
	var nameErr error
	if err := raw.Control(func(fd uintptr) { name, nameErr = unix.Getsockname(int(fd)) }); err != nil || nameErr != nil {
		return 0, fmt.Errorf("reading the number of a netlink socket: %w", errors.Join(err, nameErr))
	}
	address, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("reading the number of a netlink socket: its name is a %T", name)
	}
	return address.Pid, nil
}

// request is a message to the nftables subsystem about the family ip.
func request(kind int, flags netlink.HeaderFlags, attrs ...netlink.Attribute) netlink.Message {
	// The header of every nfnetlink message: family, version, resource ID.
	data := []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}
	for _, a := range attrs {
		// Marshalling strings as short as ours cannot fail.
		b, _ := netlink.MarshalAttributes([]netlink.Attribute{a})
		data = append(data, b...)
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), //nolint:gosec // constants
			Flags: netlink.Request | flags,
		},
		Data: data,
	}
}

func attr(kind uint16, value string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: []byte(value + "\x00")}
}

// eachAttr calls f for every attribute of nfnetlink messages, whose numbers are
// in network order.
func eachAttr(messages []netlink.Message, f func(*netlink.AttributeDecoder)) error {
	const header = 4
	for _, m := range messages {
		if len(m.Data) < header {
			return fmt.Errorf("message of type %#x is too short: %d bytes", m.Header.Type, len(m.Data))
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[header:])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			f(ad)
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}

func number(kind uint16, value uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, value)}
}

func encodeNumber(kind uint16, value uint32) []byte {
	return Encode(kind, binary.BigEndian.AppendUint32(nil, value))
}

// Nested returns one attribute that holds others.
func Nested(kind uint16, data []byte) []byte { return Encode(kind|unix.NLA_F_NESTED, data) }

// Encode returns one attribute. Marshalling fails only beyond 64 KiB.
func Encode(kind uint16, data []byte) []byte {
	b, _ := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind, Data: data}})
	return b
}
