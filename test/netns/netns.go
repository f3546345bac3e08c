// Package netns builds small networks out of Linux network namespaces, for
// tests, the end-to-end world and the demo.
//
// Every namespace made here begins with a blackhole route for the metadata address and
// has no default route, so that nothing sent in it can reach the real instance
// metadata service of the machine. Namespaces are held by file descriptor and
// never by a name under /run: when the process ends, in whatever way, the kernel
// removes them with every link, rule and socket in them. It needs root.
//
// It must not become a container runtime: only the network is separate.
package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotRoot is wrapped by every error that comes of missing privileges.
var ErrNotRoot = errors.New("network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")

// metadata returns the address of the instance metadata service, which no
// namespace may reach by accident.
func metadata() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 169, 254}), 32)
}

// NS is a network namespace. Its methods may be called by several goroutines at
// once, but not after Close.
type NS struct {
	name   string
	fd     netns.NsHandle
	handle *netlink.Handle // an rtnetlink socket inside the namespace

	mu      sync.Mutex // protects the following
	closers []io.Closer
	closed  bool
}

// New makes a network namespace in which the metadata address is a blackhole,
// lo is up and nothing else exists. The name serves errors only.
func New(name string) (*NS, error) {
	n := &NS{name: name, fd: netns.None()}
	if err := onThread(n.create); err != nil {
		return nil, errors.Join(fmt.Errorf("making network namespace %s: %w", name, err), n.Close())
	}
	if err := n.seal(); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing network namespace %s: %w", name, err), n.Close())
	}
	return n, nil
}

// Open returns the network namespace that a process is in. It holds on to it,
// also after the process has ended, and changes nothing in it; Close lets go. The
// name serves errors only.
func Open(name string, pid int) (*NS, error) {
	fd, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace of process %d for %s: %w", pid, name, privileged(err))
	}
	n := &NS{name: name, fd: fd}
	if n.handle, err = netlink.NewHandleAt(fd, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("opening rtnetlink in %s: %w", name, privileged(err)), n.Close())
	}
	return n, nil
}

// create moves the thread it runs on into a new namespace and keeps that.
func (n *NS) create() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return privileged(err)
	}
	fd, err := netns.Get()
	if err != nil {
		return err
	}
	n.fd = fd
	return nil
}

// seal puts the blackhole in place before there is any link that is up.
func (n *NS) seal() error {
	handle, err := netlink.NewHandleAt(n.fd, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	n.handle = handle
	blackhole := &netlink.Route{Dst: ipNet(metadata()), Type: unix.RTN_BLACKHOLE}
	if err := handle.RouteAdd(blackhole); err != nil {
		return fmt.Errorf("adding the blackhole route for %s: %w", metadata(), privileged(err))
	}
	return n.up("lo")
}

// Name returns the name given to [New].
func (n *NS) Name() string { return n.name }

// FD returns the file descriptor of the namespace. It is valid until Close.
func (n *NS) FD() int { return int(n.fd) }

// Path returns a path by which other programs can enter the namespace while
// this process lives, such as nsenter --net=PATH.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Do runs f on a thread of its own inside the namespace and returns its error.
// Sockets and processes that f makes belong to the namespace for good;
// goroutines that it starts do not.
func (n *NS) Do(f func() error) error {
	err := onThread(func() error {
		if err := netns.Set(n.fd); err != nil {
			return fmt.Errorf("entering: %w", privileged(err))
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("in network namespace %s: %w", n.name, err)
	}
	return nil
}

// Close ends the processes started in the namespace, closes its counters and
// deletes its links. Sockets made by Listen and Dial are their owners' to close:
// the kernel keeps the namespace until the last one is gone. A second Close does
// nothing.
func (n *NS) Close() error {
	n.mu.Lock()
	closers, closed := n.closers, n.closed
	n.closers, n.closed = nil, true
	n.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, closer := range slices.Backward(closers) {
		errs = append(errs, closer.Close())
	}
	if n.handle != nil {
		n.handle.Close()
	}
	if n.fd.IsOpen() {
		errs = append(errs, n.fd.Close())
	}
	return errors.Join(errs...)
}

// onClose has c closed by Close, at once if that was already called.
func (n *NS) onClose(c io.Closer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.Join(fmt.Errorf("network namespace %s is closed", n.name), c.Close())
	}
	n.closers = append(n.closers, c)
	return nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// onThread runs f on a locked thread that gets its namespace back afterwards. A
// thread that cannot get it back is thrown away: a goroutine that ends while
// locked takes its thread with it.
func onThread(f func() error) error {
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = errors.New("the function did not return")
		runtime.LockOSThread()
		origin, getErr := netns.Get()
		if getErr != nil {
			err = fmt.Errorf("reading the thread's network namespace: %w", getErr)
			return
		}
		defer origin.Close()
		err = f()
		if netns.Set(origin) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return err
}

func privileged(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", ErrNotRoot, err)
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
