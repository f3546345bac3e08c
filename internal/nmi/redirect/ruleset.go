package redirect

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The names under which the rules are found in the node's ruleset. A new
// version must keep them, or it leaves the old version's rules behind.
const (
	mainTable     = "aad-pod-identity"
	fenceTable    = "aad-pod-identity-fence"
	spareTable    = "aad-pod-identity-fence-spare"
	guardChain    = "guard"
	redirectChain = "redirect"
	fenceChain    = "fence"
	answerChain   = "answer"
)

// tableOwned is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h, since Linux 5.12.
const tableOwned = 2

// Priority is that of the redirect in prerouting.
const Priority int32 = natPriority

// natPriority comes before dstnat (-100), where every other user of NAT hooks,
// so that it does not matter who registered first.
const natPriority = -110

// isOurs says whether a table is one of those that are installed here.
func isOurs(family nftables.TableFamily, name string) bool {
	return family == nftables.TableFamilyIPv4 && (name == mainTable || name == fenceTable || name == spareTable)
}

// table is what is desired of a table, or what the kernel says it holds.
type table struct {
	name   string
	flags  uint32 // 1 is a table that is switched off, tableOwned one that belongs to a socket
	uses   uint32 // how many chains, sets and other objects it holds
	owner  uint32 // the port of that socket; 0 for none
	chains []chain
}

// chain is a base chain with its rules in order.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	policy   nftables.ChainPolicy
	rules    []rule
}

// rule is what a rule does, and the comment that it is recognised by.
type rule struct {
	comment string
	exprs   []expr.Any
}

// desired returns the tables for a config. They are what Ensure installs and
// Verify expects.
//
//	table  chain     hook         priority  rule
//	all    guard     prerouting   -300      from outside, to or from 127.0.0.0/8 → drop   (loopback target only)
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
func desired(c Config) []table {
	redirect := chain{
		name: redirectChain, kind: nftables.ChainTypeNAT, hook: *nftables.ChainHookPrerouting, priority: natPriority,
		policy: nftables.ChainPolicyAccept, rules: []rule{redirectRule(c)},
	}
	drops := dropChains(c)
	main := newTable(mainTable, append([]chain{redirect}, drops...))
	if c.Bound {
		main.flags = tableOwned
	}
	return []table{main, newTable(fenceTable, drops), newTable(spareTable, drops)}
}

func newTable(name string, chains []chain) table {
	return table{name: name, uses: uint32(len(chains)), chains: chains} //nolint:gosec // four at most
}

func dropChains(c Config) []chain {
	chains := []chain{
		{
			name: fenceChain, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookForward, priority: *nftables.ChainPriorityFilter,
			rules: []rule{refusedRule(c), fenceRule(c), reroutedRule(c)},
		},
		{
			name: answerChain, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookOutput, priority: *nftables.ChainPriorityFilter,
			rules: []rule{answerRule(c)},
		},
	}
	if c.loopback() {
		chains = append(chains, chain{
			name: guardChain, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw,
			rules: []rule{
				{comment: "no packet from outside is for loopback", exprs: guardExprs(destination)},
				{comment: "no packet from outside is from loopback", exprs: guardExprs(source)},
			},
		})
	}
	for i := range chains {
		chains[i].policy = nftables.ChainPolicyAccept
	}
	return chains
}

// redirectRule is the DNAT. The kernel names both ends of each range when it is
// asked, so they are written down here.
func redirectRule(c Config) rule {
	exprs := join(
		isTCP(),
		ipIs(destination, c.Metadata.Addr()),
		portIs(destination, c.Metadata.Port()),
		[]expr.Any{
			&expr.Immediate{Register: 1, Data: c.Target.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: port(c.Target.Port())},
			&expr.NAT{
				Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
				RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: 2, RegProtoMax: 2, Specified: true,
			},
		})
	return rule{comment: "pods ask NMI for metadata", exprs: exprs}
}

// refusedRule answers a pod at once while nothing leads it to NMI. Silence would
// have it wait for minutes.
func refusedRule(c Config) rule {
	return rule{
		comment: "a pod is refused while NMI is away",
		exprs: join(
			isTCP(),
			ipIs(destination, c.Metadata.Addr()),
			portIs(destination, c.Metadata.Port()),
			[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
	}
}

// fenceRule stops what the redirect does not take: other ports and protocols,
// and connections that are older than it.
func fenceRule(c Config) rule {
	return rule{
		comment: "no pod reaches the metadata address",
		exprs:   join(ipIs(destination, c.Metadata.Addr()), drop()),
	}
}

// reroutedRule stops a connection that somebody else's NAT took to another host
// first.
func reroutedRule(c Config) rule {
	return rule{
		comment: "no pod is sent elsewhere for metadata",
		exprs: join(
			isTCP(),
			[]expr.Any{&expr.Ct{Key: expr.CtKeyDST, Register: 1}, equals(c.Metadata.Addr().AsSlice())},
			[]expr.Any{&expr.Ct{Key: expr.CtKeyPROTODST, Register: 1}, equals(port(c.Metadata.Port()))},
			drop()),
	}
}

// answerRule keeps other users' processes from answering in NMI's name while it
// is away. The kernel's own refusals belong to no user and pass.
func answerRule(c Config) rule {
	return rule{
		comment: "only NMI answers from its address",
		exprs: join(
			isTCP(),
			ipIs(source, c.Target.Addr()),
			portIs(source, c.Target.Port()),
			[]expr.Any{
				&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(c.UID)},
			},
			drop()),
	}
}

// guardExprs stand in for the kernel's own refusal of loopback addresses from
// outside, which route_localnet switches off.
func guardExprs(e end) []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return join(
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
		},
		[]expr.Any{
			// The first byte of the address is all of the prefix 127.0.0.0/8.
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

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
