// Package redirect puts the node's rules in place that lead a pod's requests
// for the metadata address to NMI, keeps them there, and never takes them away
// because NMI ends: while they stand and NMI does not, a pod reaches neither a
// token nor the node's own identity.
//
// The flow is: [Config] → the desired rules (ruleset, pure) → compared with what
// the kernel says it has (wire, ruleset) → one nftables transaction for each table
// that differs; and the links (loopback, ownlink). The keeper repeats that whenever the
// kernel reports a change, and on an interval.
//
// It decides nothing about pods or identities and must not learn to: whose
// request it is, is the business of the stages behind the listener.
package redirect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// Datapath leads pods' connections for the metadata endpoint to NMI.
type Datapath interface {
	// Ensure installs what is missing and repairs what is damaged, and says
	// what it changed. While it replaces rules there is no moment without them.
	Ensure(ctx context.Context) (Change, error)

	// Verify reads everything back and returns nil only if it is all in place
	// and as desired. It changes nothing.
	Verify(ctx context.Context) error

	// Delete removes everything that Ensure installs, by whichever process, and
	// says what was there. Deleting what is not there is no error, so that a
	// clean-up that was interrupted can be repeated. A keeper that has not
	// ended puts it back.
	Delete(ctx context.Context) (Removal, error)
}

// Removal is what one Delete removed. The zero Removal is: nothing was there.
type Removal struct {
	// Tables are the names of the tables, of the family ip.
	Tables []string

	// Links counts the links on which routing to loopback was switched off.
	Links int

	// OwnLink says that NMI's own link was there.
	OwnLink bool

	// Flows counts the connections that were led to NMI and were forgotten.
	// FlowsErr is why that was not possible; the kernel forgets them later.
	Flows    uint
	FlowsErr error
}

// IsZero reports whether nothing was removed.
func (r Removal) IsZero() bool {
	return len(r.Tables) == 0 && r.Links == 0 && !r.OwnLink && r.Flows == 0
}

// Change is what one Ensure did. The zero Change is: nothing.
type Change struct {
	// Rules says that the rules were installed or replaced, Reason why.
	Rules  bool
	Reason string

	// Links counts the links on which routing to loopback was switched on, or off
	// since pods are led to loopback no more.
	Links int

	// OwnLink says what NMI's own link lacked, or that it was removed; "" if
	// nothing was done to it.
	OwnLink string

	// Flows counts the connections that were older than the rules and were
	// forgotten, so that their next packets meet them. FlowsErr is why that was
	// not possible; it leaves the rules in force.
	Flows    uint
	FlowsErr error
}

// Why says what was wrong: with NMI's own link, and with the rules.
func (c Change) Why() string { return strings.Trim(c.OwnLink+"; "+c.Reason, "; ") }

// IsZero reports whether nothing was changed.
func (c Change) IsZero() bool {
	return !c.Rules && c.Links == 0 && c.OwnLink == "" && c.Flows == 0 && c.FlowsErr == nil
}

// Config says what is redirected where.
type Config struct {
	// Metadata is the endpoint that pods ask. Zero: 169.254.169.254:80.
	Metadata netip.AddrPort

	// Target is NMI's listener, an address of this node. Zero: 127.0.0.1:2579, or
	// with Link [LinkAddress] and that port.
	Target netip.AddrPort

	// Link has a link of NMI's own hold the target's address, which must be a
	// link-local one that no other link has. Pods reach it by the redirect alone.
	// False: the address is there without it.
	Link bool

	// UID is the user that NMI runs as. Only sockets of this user may answer
	// from Target. Zero is root, as in a DaemonSet that names no other user:
	// then any process of root's may answer, unless Bound is set.
	UID uint32

	// Bound ties the redirect to this process, which must listen on Target
	// before it calls Ensure: when it ends, however, the kernel takes the
	// redirect away before anybody else can listen there. What stops pods stays.
	// It needs Linux 5.12. False: the redirect stays too.
	Bound bool

	// NetNS is a file descriptor of the network namespace to work in. Zero: the
	// one of the process.
	NetNS int
}

// LinkAddress is the address of NMI's own link, if no other is given. It is in
// 169.254.255.0/24, which hosts that give themselves an address leave alone (RFC
// 3927, section 2.1), and none of the metadata services, DNS caches and network
// plugins that we know of has one there.
func LinkAddress() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 255, 79}) }

// DefaultAddress is the target's, if no other is given.
func DefaultAddress(link bool) netip.Addr {
	if link {
		return LinkAddress()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// ListenAddress returns the target's address as a user gives it. That of loopback,
// which cannot be on a link of NMI's own, stands for that link's.
func ListenAddress(given string, link bool) string {
	if link && given == DefaultAddress(false).String() {
		return DefaultAddress(true).String()
	}
	return given
}

// withDefaults fills what is zero and refuses what cannot work.
func (c Config) withDefaults() (Config, error) {
	if c.Metadata == (netip.AddrPort{}) {
		c.Metadata = netip.AddrPortFrom(netip.AddrFrom4([4]byte{169, 254, 169, 254}), 80)
	}
	if c.Target == (netip.AddrPort{}) {
		c.Target = netip.AddrPortFrom(DefaultAddress(c.Link), 2579)
	}
	if c.NetNS < 0 {
		return Config{}, fmt.Errorf("network namespace %d: want an open file descriptor, or 0 for the process's own", c.NetNS)
	}
	if err := checkMetadata(c.Metadata); err != nil {
		return Config{}, fmt.Errorf("metadata endpoint %s: %w", c.Metadata, err)
	}
	if err := checkTarget(c); err != nil {
		return Config{}, fmt.Errorf("redirect target %s: %w", c.Target, err)
	}
	return c, nil
}

func checkMetadata(m netip.AddrPort) error {
	switch addr := m.Addr(); {
	case !addr.Is4():
		return errors.New("want an IPv4 address: the metadata service has no other")
	case m.Port() == 0:
		return errors.New("want a port from 1 to 65535")
	case addr.IsLoopback(), addr.IsUnspecified(), addr.IsMulticast():
		return errors.New("want the unicast address that pods send to, such as 169.254.169.254")
	}
	return nil
}

func checkTarget(c Config) error {
	switch addr := c.Target.Addr(); {
	case !addr.Is4():
		return errors.New("want an IPv4 address of this node, such as 127.0.0.1: connections for an IPv4 address cannot be led to another family")
	case c.Target.Port() == 0:
		return errors.New("want a port from 1 to 65535")
	case addr.IsUnspecified():
		return errors.New("want one address of this node that connections can be led to, such as 127.0.0.1")
	case addr.IsMulticast():
		return errors.New("want a unicast address of this node, such as 127.0.0.1")
	case addr == c.Metadata.Addr():
		return errors.New("want another address than the metadata service's")
	case c.Link && !addr.IsLinkLocalUnicast():
		return fmt.Errorf("want a link-local address for a link of NMI's own, such as %s", LinkAddress())
	}
	return nil
}

// spec is the part of it that the rules depend on.
func (c Config) spec() ruleset.Spec {
	return ruleset.Spec{Metadata: c.Metadata, Target: c.Target, UID: c.UID, Bound: c.Bound, Own: c.Link}
}
