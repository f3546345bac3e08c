// Package shadow finds rules of others that take pods' packets for the metadata
// endpoint before the redirect sees them. Pods then get no tokens though all of
// NMI's own rules are in place, and this says whose rule it is.
//
// It reads what it understands of nftables: comparisons of addresses, protocols
// and ports, also with sets and maps. What ipset or legacy iptables hold it does
// not see, so that finding nothing proves nothing. It must not change a rule.
package shadow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Find names every rule that stops or diverts pods' connections to the metadata
// endpoint in a chain of prerouting whose priority comes before that of the
// redirect. The namespace is a file descriptor; 0 is the process's own. What it
// returns with an error is true, and may not be all.
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
			s.chain(chain)
		}
	}
	slices.Sort(s.found)
	if err := errors.Join(s.unread...); err != nil {
		return s.found, fmt.Errorf("looking for rules before the redirect: %w", err)
	}
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
	unread   []error // what could not be looked at
}

func (s *search) chain(c *nftables.Chain) {
	if s.seen[c.Table.Name+"\x00"+c.Name] {
		return
	}
	s.seen[c.Table.Name+"\x00"+c.Name] = true
	rules, err := s.conn.GetRules(c.Table, c)
	if err != nil {
		s.unread = append(s.unread, fmt.Errorf("reading the rules of chain %s of table %s: %w", c.Name, c.Table.Name, err))
	}
	for _, rule := range rules {
		s.rule(c, rule.Exprs)
	}
}

func (s *search) rule(c *nftables.Chain, exprs []expr.Any) {
	found := judge(exprs, s.metadata, func(name string) set {
		read, err := readSet(s.conn, c.Table, name)
		if err != nil {
			s.unread = append(s.unread, err)
		}
		return read
	})
	if found.does != "" {
		s.found = append(s.found, fmt.Sprintf("chain %s of table %s %s what pods send to %s", c.Name, c.Table.Name, found.does, s.metadata))
	}
	for _, next := range found.next {
		s.chain(&nftables.Chain{Name: next, Table: c.Table})
	}
}

// fate is what becomes of a pod's connection to the metadata endpoint by a rule.
// The zero value is nothing: the rule is not about that address, or is not met, or
// lets it through.
type fate struct {
	does string   // what keeps it from the redirect
	next []string // the chains that it may go on to
}

// judge says what a rule does to a pod's connection to the metadata endpoint. What
// it does not understand may be met. Sets are asked for by name, when it depends on
// them.
func judge(exprs []expr.Any, metadata netip.AddrPort, sets func(string) set) fate {
	p := packet{metadata: metadata, known: map[uint32]value{}, sets: sets}
	for _, e := range exprs {
		if out, over := p.pass(e); over {
			return out
		}
	}
	return fate{}
}

// pass follows the packet through one expression. The rule may be over with it.
func (p *packet) pass(e expr.Any) (out fate, over bool) {
	switch e := e.(type) {
	case *expr.Cmp:
		return fate{}, !p.meets(e)
	case *expr.Lookup:
		return p.lookUp(e)
	}
	if out, over := p.end(e); over {
		return out, true
	}
	p.load(e)
	return fate{}, false
}

// lookUp follows the packet through a set, or a map.
func (p *packet) lookUp(e *expr.Lookup) (out fate, over bool) {
	verdicts := e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT
	key, about := p.key(slot(e.SourceRegister))
	if e.IsDestRegSet && !verdicts {
		p.put(e.DestRegister, value{}, longest)
	}
	if len(key) == 0 && !verdicts {
		return fate{}, false
	}
	set := p.sets(e.SetName)
	if len(key) < set.keyLen() { // not all of it is known: any element may be the one
		return fate{next: set.chains(verdicts)}, verdicts
	}
	element, in := set.find(key)
	if in == e.Invert {
		return fate{}, true
	}
	p.about = p.about || about && in
	if verdicts {
		return p.ends(element.Val), true
	}
	return fate{}, false
}

// ends says what becomes of the packet by the value of a map of verdicts.
func (p *packet) ends(value []byte) fate {
	v, err := verdict(value)
	if err != nil {
		return fate{}
	}
	out, _ := p.end(v)
	return out
}

// end says what becomes of the packet where an expression ends the rule.
func (p *packet) end(e expr.Any) (out fate, over bool) {
	if verdict, ok := e.(*expr.Verdict); ok && verdict.Chain != "" {
		return fate{next: []string{verdict.Chain}}, true
	}
	does := ending(e)
	if does == "" {
		return fate{}, false
	}
	if !p.about {
		return fate{}, true
	}
	return fate{does: does}, true
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
	sets     func(string) set
	known    map[uint32]value // what registers hold, by slot
	about    bool             // the rule has asked for its destination
}

// longest is how many bytes an expression may put into registers: as many as a
// link's name.
const longest = unix.IFNAMSIZ

// slot numbers registers of four bytes. Those of sixteen, which are older, are four
// of them.
func slot(register uint32) uint32 {
	if register < unix.NFT_REG32_00 {
		return unix.NFT_REG32_00 + 4*(register-unix.NFT_REG_1)
	}
	return register
}

// put puts a value of so many bytes into a register and those behind it.
func (p *packet) put(register uint32, v value, length uint32) {
	first := slot(register)
	for i := range (length + registerLen - 1) / registerLen {
		delete(p.known, first+i)
	}
	if v.data != nil {
		p.known[first] = v
	}
}

// key is what is known of a register and those behind it, as far as they follow
// each other, and whether the destination is in it.
func (p *packet) key(first uint32) (key []byte, about bool) {
	for {
		v, ok := p.known[first]
		if !ok {
			return key, about
		}
		first++
		about = about || v.address
		key = append(key, v.data...)
		for len(key)%registerLen != 0 {
			key = append(key, 0)
		}
	}
}

// load follows an expression that puts something into a register. One that is not
// understood may put anything anywhere.
func (p *packet) load(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		var v value
		if e.Key == expr.MetaKeyL4PROTO {
			v.data = []byte{unix.IPPROTO_TCP}
		}
		if !e.SourceRegister {
			p.put(e.Register, v, longest)
		}
	case *expr.Payload:
		p.put(e.DestRegister, field(e, p.metadata), e.Len)
	case *expr.Bitwise:
		p.put(e.DestRegister, masked(p.known[slot(e.SourceRegister)], e), e.Len)
	case *expr.Counter, *expr.Log:
	default:
		clear(p.known)
	}
}

// meets says whether a comparison may hold.
func (p *packet) meets(e *expr.Cmp) bool {
	held := p.known[slot(e.Register)]
	p.about = p.about || e.Op == expr.CmpOpEq && held.address
	return met(e, held.data)
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
