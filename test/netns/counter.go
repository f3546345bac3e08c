package netns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Counter counts the IPv4 packets for one address that arrive on a link, as
// they come off the wire and before any rule of the namespace sees them.
//
// The kernel counts, so a packet is in the count before anything can answer it:
// a test that has seen the outcome needs to wait for nothing more.
type Counter struct {
	fd int

	mu     sync.Mutex // protects the following and the reading of the socket
	total  uint64
	closed bool
}

// CountArrivals begins to count the packets for dst, of any protocol and from
// anywhere, that arrive on a link. Close of the namespace ends the count.
func (n *NS) CountArrivals(link string, dst netip.Addr) (*Counter, error) {
	return n.CountArrivalsFrom(link, netip.PrefixFrom(netip.IPv4Unspecified(), 0), dst)
}

// CountArrivalsFrom is [NS.CountArrivals] for packets whose source is in src.
func (n *NS) CountArrivalsFrom(link string, src netip.Prefix, dst netip.Addr) (*Counter, error) {
	if !dst.Is4() || !src.Addr().Is4() {
		return nil, fmt.Errorf("counting packets for %s: only IPv4 addresses can be counted", dst)
	}
	index, err := n.Index(link)
	if err != nil {
		return nil, err
	}
	c := &Counter{fd: -1}
	err = n.Do(func() (err error) {
		c.fd, err = openPacketSocket(index, src, dst)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("counting packets for %s on %s: %w", dst, link, privileged(err))
	}
	return c, n.onClose(c)
}

// openPacketSocket sets the filter before it binds, so that nothing that came
// in between is counted.
func openPacketSocket(index int, src netip.Prefix, dst netip.Addr) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = setFilter(fd, src, dst)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: index}))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setFilter takes the packets that come in from src and are for dst, one byte of
// each.
func setFilter(fd int, src netip.Prefix, dst netip.Addr) error {
	addr, from := dst.As4(), src.Masked().Addr().As4()
	mask := binary.BigEndian.Uint32(net.CIDRMask(src.Bits(), 32))
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 12, Size: 4}, // the source in the IPv4 header
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(from[:]), SkipTrue: 3},
		bpf.LoadAbsolute{Off: 16, Size: 4}, // the destination in the IPv4 header
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(addr[:]), SkipTrue: 1},
		bpf.RetConstant{Val: 1},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]} //nolint:gosec // nine instructions
	return os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, fprog))
}

// Count returns how many packets have arrived since the counter was made.
func (c *Counter) Count() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.total, nil
	}
	// The kernel resets its numbers when they are read. What found no room in
	// the socket's queue, which nobody empties, is part of Packets.
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("reading the packet count: %w", err)
	}
	c.total += uint64(stats.Packets)
	return c.total, nil
}

// Close ends the count; Count keeps returning what it last returned.
func (c *Counter) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return unix.Close(c.fd)
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
