package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Options configure a [Table].
type Options struct {
	// Now is the clock; nil is the real one.
	Now func() time.Time
	// Observe is told of changes, in their order, before any answer that rests on
	// them. It must not call the Table. Nil tells nobody.
	Observe func([]Event)
}

// Table answers from the kernel's tables, as they are when it is asked: what the
// kernel has announced by then is read first. It is safe for concurrent use.
type Table struct {
	options Options
	file    *os.File // the socket of announcements, for its readiness

	mu     sync.Mutex // protects all following fields
	events int        // the same socket; -1 once it is closed
	ask    *netlink.Conn
	view   view
	routes map[netip.Addr]route // as far as they were asked for since a change
	news   bool                 // something has come since Run looked
	buffer []byte
}

// Limits of memory.
const (
	// maxRoutes bounds the answers that are kept.
	maxRoutes = 4096
	// receiveBuffer is the room for announcements that were not read yet, in
	// bytes: for a thousand links that come at once.
	receiveBuffer = 8 << 20
	bufferSize    = 64 << 10
)

// errClosed is what is said after Close.
var errClosed = fmt.Errorf("reading the node's links: %w", os.ErrClosed)

// groups are the kernel's announcements that are listened to: links, neighbours
// and ports, routes and rules of IPv4.
const groups = unix.RTMGRP_LINK | unix.RTMGRP_NEIGH | unix.RTMGRP_IPV4_ROUTE | 1<<(unix.RTNLGRP_IPV4_RULE-1)

// Open reads the tables of the calling thread's network namespace, which stays
// the one that is meant. Close it.
func Open(options Options) (*Table, error) {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Observe == nil {
		options.Observe = func([]Event) {}
	}
	t := &Table{options: options, events: -1, view: newView(), routes: map[netip.Addr]route{}, buffer: make([]byte, bufferSize)}
	if err := t.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("reading the node's links: %w", err), t.Close())
	}
	return t, nil
}

// open listens before it reads, so that nothing in between is missed.
func (t *Table) open() error {
	var err error
	if t.events, err = subscribe(); err != nil {
		return err
	}
	t.file = os.NewFile(uintptr(t.events), "rtnetlink")
	if t.ask, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	t.view, err = t.dump()
	return err
}

func subscribe() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	// Forcing takes CAP_NET_ADMIN. Without it a flood is lost sooner, and seen to be.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// Close ends it. A second Close does nothing.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	if t.file != nil {
		errs = append(errs, t.file.Close())
	}
	if t.ask != nil {
		errs = append(errs, t.ask.Close())
	}
	t.events, t.file, t.ask = -1, nil, nil
	return errors.Join(errs...)
}

// Path returns how the node reaches an IPv4 address now.
func (t *Table) Path(addr netip.Addr) (Path, error) {
	if !addr.Is4() {
		return ipOnly("only IPv4 addresses are looked up"), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.drain(); err != nil {
		return Path{}, err
	}
	r, ok := t.routes[addr]
	if !ok {
		var err error
		if r, err = t.route(addr); err != nil {
			return Path{}, err
		}
		if len(t.routes) >= maxRoutes {
			clear(t.routes)
		}
		t.routes[addr] = r
	}
	return t.view.path(addr, r), nil
}

// Devices returns the node's links, in no order.
func (t *Table) Devices() ([]Device, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.drain(); err != nil {
		return nil, err
	}
	out := make([]Device, 0, len(t.view.devices))
	for _, device := range t.view.devices {
		out = append(out, device)
	}
	return out, nil
}

// Run reads announcements as they come, until ctx ends, and calls changed after
// some did. Without it they are read when somebody asks.
func (t *Table) Run(ctx context.Context, changed func()) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watching the node's links: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = t.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		var failed error
		err := raw.Read(func(uintptr) bool {
			var news bool
			news, failed = t.poll()
			return news || failed != nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if err := errors.Join(err, failed); err != nil {
			return fmt.Errorf("watching the node's links: %w", err)
		}
		changed()
	}
}

// poll reads what has come, and reports whether anything has since it was last
// called, whoever read it.
func (t *Table) poll() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.drain()
	news := t.news
	t.news = false
	return news, err
}

// drain takes all announcements that are there and tells the observer.
func (t *Table) drain() error {
	if t.events < 0 {
		return errClosed
	}
	var batch []Event
	var missed bool
	for {
		n, from, err := unix.Recvfrom(t.events, t.buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return t.take(batch, missed)
		case errors.Is(err, unix.ENOBUFS):
			missed = true
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("reading announcements of links: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		read, err := decodeAll(t.buffer[:n])
		if err != nil {
			missed = true // whatever it was
		}
		batch = append(batch, read...)
	}
}

func decodeAll(data []byte) ([]Event, error) {
	messages, err := syscall.ParseNetlinkMessage(data)
	if err != nil {
		return nil, fmt.Errorf("reading announcements of links: %w", err)
	}
	var out []Event
	var errs []error
	for _, m := range messages {
		event, matters, err := decode(m.Header.Type, m.Data)
		if matters {
			out = append(out, event)
		}
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// take applies what was announced. After something was missed, the tables are
// read anew.
func (t *Table) take(batch []Event, missed bool) error {
	if len(batch) == 0 && !missed {
		return nil
	}
	now := t.options.Now()
	for i, event := range batch {
		if event.Kind == Seen {
			batch[i].Device.born = now
		}
		if event.Kind <= Gone || event.Kind == Routed {
			clear(t.routes)
		}
		t.view.apply(batch[i])
	}
	if missed {
		clear(t.routes)
		fresh, err := t.dump()
		if err != nil {
			return err
		}
		batch = append(batch, t.view.replaced(fresh, now)...)
		t.view = fresh
	}
	t.news = true
	t.options.Observe(batch)
	return nil
}

// replaced says what a new view means for those who knew the old one, and takes
// over what only the old one knows.
func (v view) replaced(fresh view, now time.Time) []Event {
	out := []Event{{Kind: Missed}}
	for known := range v.devices {
		if _, ok := fresh.devices[known]; !ok {
			out = append(out, Event{Kind: Gone, Link: known})
		}
	}
	for found, device := range fresh.devices {
		device.born, device.old = now, false
		if before, ok := v.devices[found]; ok {
			device.born, device.old = before.born, before.old
		}
		fresh.devices[found] = device
	}
	return out
}
