package selfprobe

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of TCP.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// Sizes in bytes, of headers without options.
const (
	sizeofEthernet = 14
	sizeofIP       = 20
	sizeofTCP      = 20
)

// hops is how far a packet goes: to this node, and never from it to another.
const hops = 1

// segment is a TCP segment without data.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    byte
}

// frame is the segment as it goes over a link of Ethernet.
func (s segment) frame(from, to net.HardwareAddr) []byte {
	b := make([]byte, 0, sizeofEthernet+sizeofIP+sizeofTCP)
	b = append(append(b, to...), from...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	return s.tcp(s.ip(b))
}

func (s segment) ip(b []byte) []byte {
	start := len(b)
	b = append(b, 0x45, 0) // version 4, five words
	b = binary.BigEndian.AppendUint16(b, sizeofIP+sizeofTCP)
	b = append(b, 0, 0, 0x40, 0) // never fragmented
	b = append(b, hops, unix.IPPROTO_TCP, 0, 0)
	b = append(append(b, s.from.Addr().AsSlice()...), s.to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[start+10:], checksum(0, b[start:]))
	return b
}

func (s segment) tcp(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, s.from.Port())
	b = binary.BigEndian.AppendUint16(b, s.to.Port())
	b = binary.BigEndian.AppendUint32(b, s.seq)
	b = binary.BigEndian.AppendUint32(b, s.ack)
	b = append(b, sizeofTCP/4<<4, s.flags)
	b = append(b, 0xff, 0xff, 0, 0, 0, 0)
	// The checksum is of the addresses, the protocol and the length, too.
	pseudo := append(s.from.Addr().AsSlice(), s.to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, sizeofTCP)
	binary.BigEndian.PutUint16(b[start+16:], checksum(sum(0, pseudo), b[start:]))
	return b
}

// checksum is that of the internet protocols, of an even number of bytes.
func checksum(start uint32, b []byte) uint16 {
	total := sum(start, b)
	for total>>16 != 0 {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

func sum(total uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		total += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return total
}

// parse reads the TCP segment of a frame; false if it holds none. The node sends
// to itself without checksums, so that none are looked at.
func parse(frame []byte) (segment, bool) {
	if len(frame) < sizeofEthernet+sizeofIP || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return segment{}, false
	}
	ip := frame[sizeofEthernet:]
	size := int(ip[0]&0x0f) * 4
	if ip[0]>>4 != 4 || size < sizeofIP || ip[9] != unix.IPPROTO_TCP || len(ip) < size+sizeofTCP {
		return segment{}, false
	}
	tcp := ip[size:]
	return segment{
		from:  netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(tcp)),
		to:    netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(tcp[2:])),
		seq:   binary.BigEndian.Uint32(tcp[4:]),
		ack:   binary.BigEndian.Uint32(tcp[8:]),
		flags: tcp[13],
	}, true
}
