// Package selfprobe tries, with a packet of the agent's own, that what pods send to
// the metadata address comes to the agent.
//
//	outer end ──SYN──► inner end ──► prerouting, as a pod's ──► the agent's listener
//	          ◄─SYN,ACK───────────────────────────────────────┘
//
// The two ends are those of a link that it makes. The SYN is put on the wire at
// the outer end, and reaches the node by the inner one, by the same rules as a
// pod's; it may go one hop, so that without rules it ends on the node. It must
// never ask by an ordinary socket: such a connection leaves the node without
// meeting the rules, and reaches the node's real metadata service.
package selfprobe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The ends of the link.
const (
	Inner = "aadpi-inner"
	Outer = "aadpi-outer"
)

// resend is after what time without an answer a SYN is sent again.
const resend = 200 * time.Millisecond

var (
	// ErrSilent says that nothing came back.
	ErrSilent = errors.New("nothing answers, so that the redirect does not work")
	// ErrRefused says that the connection was refused.
	ErrRefused = errors.New("the connection is refused, so that the agent does not listen where pods are led to")
)

// Options configure a [Prober].
type Options struct {
	// Metadata is the endpoint that pods ask.
	Metadata netip.AddrPort
	// Source is the address to ask from, which nobody else may have. The zero
	// value is 192.0.2.254, of a range that is kept for documentation.
	Source netip.Addr
}

// Prober makes connections as a pod would. One goroutine at a time may use it.
type Prober struct {
	options      Options
	handle       *netlink.Handle
	inner, outer netlink.Link
	wire         *os.File // a packet socket on the outer end
}

// Open makes the link, in the network namespace of the calling thread. A link
// that was left behind is removed first. Close removes it.
func Open(options Options) (*Prober, error) {
	if !options.Source.IsValid() {
		options.Source = netip.AddrFrom4([4]byte{192, 0, 2, 254})
	}
	p := &Prober{options: options}
	if err := p.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("making a link to try the redirect over: %w", err), p.Close())
	}
	return p, nil
}

func (p *Prober) open() error {
	var err error
	if p.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err := p.remove(); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: Inner}, PeerName: Outer}
	if err := p.handle.LinkAdd(pair); err != nil {
		return fmt.Errorf("adding %s: %w", Inner, err)
	}
	for name, into := range map[string]*netlink.Link{Inner: &p.inner, Outer: &p.outer} {
		if *into, err = p.handle.LinkByName(name); err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		// Without ARP the node sends answers to its own MAC: they come out at the
		// outer end, are read there, and are for nobody.
		if err := errors.Join(p.handle.LinkSetARPOff(*into), p.handle.LinkSetUp(*into)); err != nil {
			return fmt.Errorf("setting %s up: %w", name, err)
		}
	}
	route := &netlink.Route{
		LinkIndex: p.inner.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: p.options.Source.AsSlice(), Mask: net.CIDRMask(32, 32)},
	}
	if err := p.handle.RouteReplace(route); err != nil {
		return fmt.Errorf("routing %s: %w", p.options.Source, err)
	}
	return p.listen()
}

func (p *Prober) listen() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	p.wire = os.NewFile(uintptr(fd), Outer)
	address := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: p.outer.Attrs().Index}
	return os.NewSyscallError("bind", unix.Bind(fd, address))
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Close removes the link.
func (p *Prober) Close() error {
	if p.handle == nil {
		return nil
	}
	err := p.remove()
	if p.wire != nil {
		err = errors.Join(err, p.wire.Close())
	}
	p.handle.Close()
	p.handle, p.wire = nil, nil
	return err
}

// remove removes the link, whoever made it. One that is not there is no error.
func (p *Prober) remove() error {
	left, err := p.handle.LinkByName(Inner)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding %s: %w", Inner, err)
	}
	if err := p.handle.LinkDel(left); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing %s: %w", Inner, err)
	}
	return nil
}

// Try begins a connection, and breaks it off as soon as it is answered. It
// returns nil if it was, ErrRefused, or ErrSilent when ctx ends.
func (p *Prober) Try(ctx context.Context) error {
	syn := segment{
		from: netip.AddrPortFrom(p.options.Source, uint16(32768+rand.IntN(28000))), //nolint:gosec // nothing secret
		to:   p.options.Metadata,
		seq:  rand.Uint32(), //nolint:gosec // nothing secret
	}
	syn.flags = flagSYN
	stop := context.AfterFunc(ctx, func() { _ = p.wire.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		if err := p.send(syn); err != nil {
			return err
		}
		if err := p.wire.SetReadDeadline(time.Now().Add(resend)); err != nil {
			return fmt.Errorf("reading from %s: %w", Outer, err)
		}
		answer, err := p.receive(syn)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return err
		case answer.flags&flagRST != 0:
			return ErrRefused
		}
		return p.send(segment{from: syn.from, to: syn.to, seq: answer.ack, flags: flagRST})
	}
	return ErrSilent
}

func (p *Prober) send(s segment) error {
	if _, err := p.wire.Write(s.frame(p.outer.Attrs().HardwareAddr, p.inner.Attrs().HardwareAddr)); err != nil {
		return fmt.Errorf("writing to %s: %w", Outer, err)
	}
	return nil
}

// receive waits for what answers a SYN.
func (p *Prober) receive(syn segment) (segment, error) {
	buffer := make([]byte, 256)
	for {
		n, err := p.wire.Read(buffer)
		if err != nil {
			return segment{}, fmt.Errorf("reading from %s: %w", Outer, err)
		}
		if got, ok := parse(buffer[:n]); ok && answers(got, syn) {
			return got, nil
		}
	}
}

// answers reports whether a segment accepts or refuses a SYN.
func answers(got, syn segment) bool {
	accepts, refuses := got.flags&(flagSYN|flagACK) == flagSYN|flagACK, got.flags&flagRST != 0
	return got.from == syn.to && got.to == syn.from && got.ack == syn.seq+1 && (accepts || refuses)
}
