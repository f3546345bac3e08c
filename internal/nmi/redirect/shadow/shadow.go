// Package shadow finds rules of others that take pods' packets for the metadata
// endpoint before the redirect sees them. Pods then get no tokens though all of
// NMI's own rules are in place, and this says whose rule it is.
//
// It reads what it understands of nftables: comparisons of addresses, protocols
// and ports. What sets, maps or legacy iptables hold it does not see, so that
// finding nothing proves nothing. It must not change a rule.
package shadow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Find names every rule that stops or diverts pods' connections to the metadata
// endpoint in a chain of prerouting whose priority comes before that of the
// redirect. The namespace is a file descriptor; 0 is the process's own.
func Find(namespace int, metadata netip.AddrPort, priority int32) ([]string, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(namespace))
	if err != nil {
		return nil, fmt.Errorf("looking for rules before the redirect: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("looking for rules before the redirect: %w", err)
	}
	s := search{conn: conn, metadata: metadata, seen: map[string]bool{}}
	for _, chain := range chains {
		if before(chain, priority) {
			if err := s.chain(chain); err != nil {
				return nil, fmt.Errorf("looking for rules before the redirect: %w", err)
			}
		}
	}
	slices.Sort(s.found)
	return s.found, nil
}

// before says whether IPv4 packets from outside pass a chain before the redirect.
func before(chain *nftables.Chain, priority int32) bool {
	if chain.Hooknum == nil || chain.Priority == nil {
		return false
	}
	switch chain.Table.Family {
	case nftables.TableFamilyIPv4, nftables.TableFamilyINet:
		return *chain.Hooknum == *nftables.ChainHookPrerouting && int32(*chain.Priority) < priority
	case nftables.TableFamilyNetdev:
		return *chain.Hooknum == *nftables.ChainHookIngress
	}
	return false
}

// search goes through the chains that a packet may come to.
type search struct {
	conn     *nftables.Conn
	metadata netip.AddrPort
	seen     map[string]bool
	found    []string
}

func (s *search) chain(c *nftables.Chain) error {
	if s.seen[c.Table.Name+"\x00"+c.Name] {
		return nil
	}
	s.seen[c.Table.Name+"\x00"+c.Name] = true
	rules, err := s.conn.GetRules(c.Table, c)
	if err != nil {
		return fmt.Errorf("reading the rules of chain %s of table %s: %w", c.Name, c.Table.Name, err)
	}
	for _, rule := range rules {
		does, next := judge(rule.Exprs, s.metadata)
		if does != "" {
			s.found = append(s.found, fmt.Sprintf("chain %s of table %s %s what pods send to %s", c.Name, c.Table.Name, does, s.metadata))
		}
		if next != "" {
			if err := s.chain(&nftables.Chain{Name: next, Table: c.Table}); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge says what a rule does to a pod's connection to the metadata endpoint, ""
// if nothing: if the rule is not about that address, or is not met, or goes on. It
// also names the chain that the rule goes on to. What it does not understand may
// be met.
func judge(exprs []expr.Any, metadata netip.AddrPort) (does, next string) {
	p := packet{metadata: metadata, known: map[uint32]value{}}
	for _, e := range exprs {
		if comparison, ok := e.(*expr.Cmp); ok && !p.meets(comparison) {
			return "", ""
		}
		if verdict, ok := e.(*expr.Verdict); ok && verdict.Chain != "" {
			return "", verdict.Chain
		}
		if does := ending(e); does != "" {
			return only(p.about, does), ""
		}
		p.load(e)
	}
	return "", ""
}

// ending says what an expression does that ends a packet's way to the redirect.
func ending(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Verdict:
		if e.Kind == expr.VerdictDrop {
			return "drops"
		}
	case *expr.Reject:
		return "refuses"
	case *expr.NAT, *expr.Redir, *expr.TProxy:
		return "leads elsewhere"
	}
	return ""
}

// packet is what a rule has looked at of the first packet of a connection.
type packet struct {
	metadata netip.AddrPort
	known    map[uint32]value // what registers hold
	about    bool             // the rule has asked for its destination
}

// load follows an expression that puts something into a register.
func (p *packet) load(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		delete(p.known, e.Register)
		if e.Key == expr.MetaKeyL4PROTO && !e.SourceRegister {
			p.known[e.Register] = value{data: []byte{unix.IPPROTO_TCP}}
		}
	case *expr.Payload:
		p.known[e.DestRegister] = field(e, p.metadata)
	case *expr.Bitwise:
		p.known[e.DestRegister] = masked(p.known[e.SourceRegister], e)
	}
}

// meets says whether a comparison may hold.
func (p *packet) meets(e *expr.Cmp) bool {
	held := p.known[e.Register]
	p.about = p.about || e.Op == expr.CmpOpEq && held.address
	return met(e, held.data)
}

func only(about bool, does string) string {
	if about {
		return does
	}
	return ""
}

// value is a part of the packet. The zero value is one that is not known.
type value struct {
	data    []byte
	address bool // it is the destination, or the network that it is in
}

// field is the part of the packet that an expression loads.
func field(e *expr.Payload, metadata netip.AddrPort) value {
	address := metadata.Addr().As4()
	port := binary.BigEndian.AppendUint16(nil, metadata.Port())
	for _, known := range []struct {
		base   expr.PayloadBase
		offset uint32
		data   []byte
	}{
		{expr.PayloadBaseNetworkHeader, 9, []byte{unix.IPPROTO_TCP}},
		{expr.PayloadBaseNetworkHeader, 16, address[:]},
		{expr.PayloadBaseTransportHeader, 2, port},
	} {
		if e.Base == known.base && e.Offset == known.offset && int(e.Len) <= len(known.data) {
			return value{data: known.data[:e.Len], address: known.offset == 16}
		}
	}
	return value{}
}

func masked(v value, e *expr.Bitwise) value {
	if len(e.Mask) != len(v.data) || len(e.Xor) != len(v.data) {
		return value{}
	}
	out := value{data: make([]byte, len(v.data)), address: v.address}
	for i := range v.data {
		out.data[i] = v.data[i]&e.Mask[i] ^ e.Xor[i]
	}
	return out
}

// met says whether a comparison may hold. What is not known may.
func met(e *expr.Cmp, data []byte) bool {
	if data == nil {
		return true
	}
	order := bytes.Compare(data, e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return order == 0
	case expr.CmpOpNeq:
		return order != 0
	case expr.CmpOpLt:
		return order < 0
	case expr.CmpOpLte:
		return order <= 0
	case expr.CmpOpGt:
		return order > 0
	}
	return order >= 0
}
