package ownlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// attempts bounds how often Ensure begins again with a link that somebody deletes
// meanwhile.
const attempts = 3

// Ensure makes the link hold the address, and says what of that was missing, ""
// if nothing was. What is not NMI's is a [*RefusalError]. The namespace is a file
// descriptor, 0 for the thread's own.
func Ensure(namespace int, addr netip.Addr) (said string, err error) {
	k, err := open(namespace)
	if err != nil {
		return "", err
	}
	defer k.Close()
	for range attempts {
		if said, err = k.ensure(addr); !vanished(err) {
			break
		}
	}
	return said, err
}

func (k kernel) ensure(addr netip.Addr) (string, error) {
	n, err := k.missing(addr)
	if err != nil || n.isZero() {
		return "", err
	}
	kind, err := k.mend(n, addr)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("link %s (%s): %s", Name, kind, n), nil
}

// vanished reports whether an error is that the link was deleted after it was
// read.
func vanished(err error) bool {
	_, none := errors.AsType[nl.LinkNotFoundError](err)
	return none || errors.Is(err, unix.ENODEV)
}

// Verify returns nil if the link is there and holds the address, or a
// [*DamageError]. It changes nothing.
func Verify(namespace int, addr netip.Addr) error {
	k, err := open(namespace)
	if err != nil {
		return err
	}
	defer k.Close()
	n, err := k.missing(addr)
	if err == nil && !n.isZero() {
		err = &DamageError{n.String()}
	}
	return err
}

// Remove removes the link if it is NMI's, and says whether it was there.
func Remove(namespace int) (bool, error) {
	k, err := open(namespace)
	if err != nil {
		return false, err
	}
	defer k.Close()
	link, err := k.find()
	if link == nil || err != nil {
		return false, err
	}
	found, err := k.read(netip.Addr{})
	if err != nil || found.link == nil || !found.link.ours() {
		return false, err
	}
	if err := k.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("removing link %s: %w", Name, err)
	}
	return true, nil
}

// kernel is a socket of rtnetlink's.
type kernel struct{ *nl.Handle }

func open(namespace int) (kernel, error) {
	var handle *nl.Handle
	var err error
	if namespace == 0 {
		handle, err = nl.NewHandle(unix.NETLINK_ROUTE)
	} else {
		handle, err = nl.NewHandleAt(netns.NsHandle(namespace), unix.NETLINK_ROUTE)
	}
	if err != nil {
		return kernel{}, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return kernel{handle}, nil
}

func (k kernel) missing(addr netip.Addr) (need, error) {
	found, err := k.read(addr)
	if err != nil {
		return need{}, err
	}
	return missing(found, addr)
}

// find returns the link of the name, nil for none.
func (k kernel) find() (nl.Link, error) {
	link, err := k.LinkByName(Name)
	if vanished(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finding link %s: %w", Name, err)
	}
	return link, nil
}

// read looks for the link, and for another one that has the address.
func (k kernel) read(addr netip.Addr) (node, error) {
	link, err := k.find()
	if err != nil {
		return node{}, err
	}
	all, err := k.addresses()
	if err != nil {
		return node{}, err
	}
	var found node
	index := 0
	if link != nil {
		a := link.Attrs()
		found.link = &state{kind: link.Type(), alias: a.Alias, up: a.Flags&net.FlagUp != 0}
		index = a.Index
	}
	for _, has := range all {
		ip, _ := netip.AddrFromSlice(has.IP)
		bits, _ := has.Mask.Size()
		switch {
		case has.LinkIndex == index:
			found.link.addrs = append(found.link.addrs, netip.PrefixFrom(ip.Unmap(), bits))
		case ip.Unmap() == addr:
			found.elsewhere = k.nameOf(has.LinkIndex)
		}
	}
	return found, nil
}

// addresses lists those of IPv4. A list that changes while it is read is read
// again.
func (k kernel) addresses() ([]nl.Addr, error) {
	var all []nl.Addr
	var err error
	for range 3 {
		if all, err = k.AddrList(nil, unix.AF_INET); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return all, nil
}

func (k kernel) nameOf(index int) string {
	link, err := k.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("with the index %d", index) // gone since; its name says no more
	}
	return link.Attrs().Name
}

// mend does what must be done, and returns the type of the link.
func (k kernel) mend(n need, addr netip.Addr) (kind string, err error) {
	if n.create {
		if err := create(k.LinkAdd); err != nil {
			return "", err
		}
	}
	link, err := k.LinkByName(Name)
	if err != nil {
		return "", fmt.Errorf("finding link %s: %w", Name, err)
	}
	var errs []error
	if n.mark {
		errs = append(errs, k.LinkSetAlias(link, mark))
	}
	for _, prefix := range n.drop {
		errs = append(errs, k.AddrDel(link, address(prefix)))
	}
	if n.add {
		errs = append(errs, k.AddrAdd(link, address(netip.PrefixFrom(addr, addr.BitLen()))))
	}
	if n.raise {
		errs = append(errs, k.LinkSetUp(link))
	}
	if err := errors.Join(errs...); err != nil {
		return "", fmt.Errorf("configuring link %s: %w", Name, err)
	}
	return link.Type(), nil
}

// create adds the link, of the first type that the kernel has. The kernel loads a
// module for it, if there is one.
func create(add func(nl.Link) error) error {
	attrs := nl.NewLinkAttrs()
	attrs.Name = Name
	for _, link := range []nl.Link{&nl.Dummy{LinkAttrs: attrs}, &nl.Bridge{LinkAttrs: attrs}} {
		err := add(link)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("adding link %s: %w", Name, err)
		}
	}
	return fmt.Errorf("adding link %s: %w", Name, ErrUnsupported)
}

// address is one that the node never takes for the source of what it sends: it is
// known on the node alone.
func address(prefix netip.Prefix) *nl.Addr {
	mask := net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())
	return &nl.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: mask}, Scope: int(nl.SCOPE_HOST)}
}
