package ruleset

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Desired returns the tables for a spec. They are what Ensure installs and
// Verify expects.
//
//	table  chain     hook         priority  rule
//	all    guard     prerouting   -300      from outside, to or from 127.0.0.0/8 → drop   (loopback and own target)
//	                                        TCP from outside to NMI's own address → refuse   (own target)
//	                                        from outside, to or from that address → drop   (own target)
//	main   redirect  prerouting   -110      TCP to the metadata endpoint → DNAT to the target
//	all    fence     forward         0      TCP to the metadata endpoint → refuse
//	                                        to the metadata address → drop
//	                                        TCP that was to the metadata endpoint → drop
//	all    answer    output          0      TCP from the target, not from NMI's user → drop
//
// PREROUTING sees what comes from outside the host's own stack, so that the
// node's processes, and pods on its network, keep their way to the service.
//
// All that only stops packets stands in every table, and in two of them that stay
// when this process ends: somebody who deletes or flushes one, whichever and
// whenever, opens nothing until it is put back. Without the redirect a pod is
// refused, and never asks as the node.
//
// A main table that is bound belongs to a socket of this process: nobody else can
// change it, and the kernel takes it away when the process ends, in whatever way.
// Pods are then led nowhere, so that nobody can take NMI's place.
func Desired(s Spec) []Table {
	redirect := Chain{
		Name: RedirectChain, Kind: nftables.ChainTypeNAT, Hook: *nftables.ChainHookPrerouting, Priority: Priority,
		Policy: nftables.ChainPolicyAccept, Rules: []Rule{redirectRule(s)},
	}
	drops := dropChains(s)
	main := newTable(MainTable, append([]Chain{redirect}, drops...))
	if s.Bound {
		main.Flags = Owned
	}
	return []Table{main, newTable(FenceTable, drops), newTable(SpareTable, drops)}
}

func newTable(name string, chains []Chain) Table {
	return Table{Name: name, Uses: uint32(len(chains)), Chains: chains} //nolint:gosec // four at most
}

func dropChains(s Spec) []Chain {
	chains := []Chain{
		{
			Name: FenceChain, Kind: nftables.ChainTypeFilter, Hook: *nftables.ChainHookForward, Priority: *nftables.ChainPriorityFilter,
			Rules: []Rule{refusedRule(s), fenceRule(s), reroutedRule(s)},
		},
		{
			Name: AnswerChain, Kind: nftables.ChainTypeFilter, Hook: *nftables.ChainHookOutput, Priority: *nftables.ChainPriorityFilter,
			Rules: []Rule{answerRule(s)},
		},
	}
	if rules := guardRules(s); rules != nil {
		chains = append(chains, Chain{
			Name: GuardChain, Kind: nftables.ChainTypeFilter, Hook: *nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityRaw,
			Rules: rules,
		})
	}
	for i := range chains {
		chains[i].Policy = nftables.ChainPolicyAccept
	}
	return chains
}

// redirectRule is the DNAT. The kernel names both ends of each range when it is
// asked, so they are written down here.
func redirectRule(s Spec) Rule {
	exprs := join(
		isTCP(),
		ipIs(destination, s.Metadata.Addr()),
		portIs(destination, s.Metadata.Port()),
		[]expr.Any{
			&expr.Immediate{Register: 1, Data: s.Target.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: port(s.Target.Port())},
			&expr.NAT{
				Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
				RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: 2, RegProtoMax: 2, Specified: true,
			},
		})
	return Rule{Comment: "pods ask NMI for metadata", Exprs: exprs}
}

// refusedRule answers a pod at once while nothing leads it to NMI. Silence would
// have it wait for minutes.
func refusedRule(s Spec) Rule {
	return Rule{
		Comment: "a pod is refused while NMI is away",
		Exprs: join(
			isTCP(),
			ipIs(destination, s.Metadata.Addr()),
			portIs(destination, s.Metadata.Port()),
			reset()),
	}
}

// fenceRule stops what the redirect does not take: other ports and protocols,
// and connections that are older than it.
func fenceRule(s Spec) Rule {
	return Rule{
		Comment: "no pod reaches the metadata address",
		Exprs:   join(ipIs(destination, s.Metadata.Addr()), drop()),
	}
}

// reroutedRule stops a connection that somebody else's NAT took to another host
// first.
func reroutedRule(s Spec) Rule {
	return Rule{
		Comment: "no pod is sent elsewhere for metadata",
		Exprs: join(
			isTCP(),
			[]expr.Any{&expr.Ct{Key: expr.CtKeyDST, Register: 1}, equals(s.Metadata.Addr().AsSlice())},
			[]expr.Any{&expr.Ct{Key: expr.CtKeyPROTODST, Register: 1}, equals(port(s.Metadata.Port()))},
			drop()),
	}
}

// answerRule keeps other users' processes from answering in NMI's name while it
// is away. The kernel's own refusals belong to no user and pass.
func answerRule(s Spec) Rule {
	return Rule{
		Comment: "only NMI answers from its address",
		Exprs: join(
			isTCP(),
			ipIs(source, s.Target.Addr()),
			portIs(source, s.Target.Port()),
			[]expr.Any{
				&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(s.UID)},
			},
			drop()),
	}
}

// forLoopback is the comment of a rule that tells of links that let packets
// through to loopback. A new version must keep it, or it leaves them so.
const forLoopback = "no packet from outside is for loopback"

// guardRules keep packets from outside from the target, unless the redirect has
// led them there: it comes later.
//
// For loopback addresses they stand in for the kernel's own refusal, which
// route_localnet switches off. An address of NMI's own is no secret: pods, and
// hosts of the node's network, could send there. They are refused, as by a
// loopback of their own. Loopback is guarded there, too: whoever kept the redirect
// ahead of an agent that takes it over may open a link once more, too late for it
// to be closed.
func guardRules(s Spec) []Rule {
	switch addr := s.Target.Addr(); {
	case s.Loopback():
		return []Rule{
			{Comment: forLoopback, Exprs: loopbackExprs(destination)},
			{Comment: "no packet from outside is from loopback", Exprs: loopbackExprs(source)},
		}
	case s.Own:
		return []Rule{
			{Comment: "nobody asks NMI past the redirect", Exprs: join(isFromOutside(), isTCP(), ipIs(destination, addr), reset())},
			{Comment: "no packet from outside is for NMI's address", Exprs: join(isFromOutside(), ipIs(destination, addr), drop())},
			{Comment: "no packet from outside is from NMI's address", Exprs: join(isFromOutside(), ipIs(source, addr), drop())},
			{Comment: "loopback stays closed", Exprs: loopbackExprs(destination)},
			{Comment: "and nothing claims to be from there", Exprs: loopbackExprs(source)},
		}
	}
	return nil
}

func isFromOutside() []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
	}
}

// loopbackExprs ask for the first byte of an address, which is all of the prefix
// 127.0.0.0/8.
func loopbackExprs(e end) []expr.Any {
	return join(
		isFromOutside(),
		[]expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: e.ipOffset(), Len: 1},
			equals([]byte{127}),
		},
		drop())
}

// end is a side of a packet. In the headers of IPv4 and TCP the source stands
// directly before the destination.
type end uint32

const (
	source end = iota
	destination
)

// ipOffset is where the address stands in the IPv4 header, in bytes.
func (e end) ipOffset() uint32 { return 12 + 4*uint32(e) }

// portOffset is where the port stands in the TCP header, in bytes.
func (e end) portOffset() uint32 { return 2 * uint32(e) }

func ipIs(e end, addr netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: e.ipOffset(), Len: 4},
		equals(addr.AsSlice()),
	}
}

func portIs(e end, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: e.portOffset(), Len: 2},
		equals(port(p)),
	}
}

func isTCP() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals([]byte{unix.IPPROTO_TCP})}
}

func equals(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
