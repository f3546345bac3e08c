// Package ownlink keeps a link of NMI's own on a node, with the one address that
// pods can be led to instead of a loopback address.
//
// [state] that was read → what is missing (pure) → the steps that mend it. The
// link never carries a packet: what is for an address of the node's own goes in by
// the link on which it came. So a dummy link serves, and where the kernel has none
// a bridge without ports does. The package must not touch a link that somebody
// else has made, nor know of rules.
package ownlink

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Name is the link's on every node. A new version must keep it, or it leaves the
// old version's link behind.
const Name = "aad-pod-id0"

// mark is the link's alias, by which it is known to be NMI's.
const mark = "NMI of aad-pod-identity"

// The types of link that serve, in the order in which they are tried.
const (
	dummy  = "dummy"
	bridge = "bridge"
)

// ErrUnsupported is wrapped when the kernel has no type of link that serves.
var ErrUnsupported = errors.New("the kernel has neither dummy links nor bridges: load one of the modules (modprobe dummy), or lead pods to loopback (--redirect-target=loopback)")

// RefusalError says that the link's name or its address is somebody else's, which
// nothing is done to.
type RefusalError struct{ What string }

// Error says what is whose, and what to do.
func (e *RefusalError) Error() string { return e.What }

// DamageError is what the link lacks.
type DamageError struct{ What string }

// Error names the link.
func (e *DamageError) Error() string { return fmt.Sprintf("link %s: %s", Name, e.What) }

// state is what a node has under the link's name.
type state struct {
	kind  string // as the kernel calls the type
	alias string
	up    bool
	addrs []netip.Prefix // of IPv4
}

// node is what was read of a node: the link, nil for none, and the name of another
// link that has the address, "" for none.
type node struct {
	link      *state
	elsewhere string
}

// ours says whether NMI has made the link. One without a mark, an address, and
// not up, is one that NMI has not finished.
func (s *state) ours() bool {
	serves := s.kind == dummy || s.kind == bridge
	unfinished := s.alias == "" && len(s.addrs) == 0 && !s.up
	return serves && (s.alias == mark || unfinished)
}

// need is what must be done to a link that is NMI's, in this order.
type need struct {
	create, mark bool
	drop         []netip.Prefix
	add, raise   bool
}

// isZero says that nothing must be done.
func (n need) isZero() bool {
	return !n.create && !n.mark && len(n.drop) == 0 && !n.add && !n.raise
}

// String says what is missing, in words.
func (n need) String() string {
	if n.create {
		return "missing"
	}
	var words []string
	for _, w := range []struct {
		holds bool
		word  string
	}{
		{n.mark, "without its mark"}, {len(n.drop) > 0, fmt.Sprintf("has %v", n.drop)},
		{n.add, "without its address"}, {n.raise, "down"},
	} {
		if w.holds {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ", ")
}

// missing says what must be done for the link to hold the address and no other.
func missing(found node, addr netip.Addr) (need, error) {
	link, whole := found.link, netip.PrefixFrom(addr, addr.BitLen())
	if link != nil && !link.ours() {
		return need{}, &RefusalError{fmt.Sprintf("link %s, of type %s, is not NMI's: delete it (ip link delete %s), or lead pods to loopback (--redirect-target=loopback)", Name, link.kind, Name)}
	}
	if link == nil {
		link = &state{}
	}
	n := need{create: found.link == nil, mark: link.alias != mark, raise: !link.up, add: !slices.Contains(link.addrs, whole)}
	for _, has := range link.addrs {
		if has != whole {
			n.drop = append(n.drop, has)
		}
	}
	if n.add && found.elsewhere != "" {
		return need{}, &RefusalError{fmt.Sprintf("link %s has the address %s already: give another one (--nmi-listen-address)", found.elsewhere, addr)}
	}
	return n, nil
}
