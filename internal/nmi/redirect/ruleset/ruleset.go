// Package ruleset says which tables of nftables lead a node's pods to NMI, and in
// what those that a node has differ from them.
//
// [Spec] → [Desired] → [Compare] with what was read → the first [Damage]. It
// computes, and must not speak to the kernel: the package wire does.
package ruleset

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The names under which the rules are found in the node's ruleset. A new
// version must keep them, or it leaves the old version's rules behind.
const (
	MainTable     = "aad-pod-identity"
	FenceTable    = "aad-pod-identity-fence"
	SpareTable    = "aad-pod-identity-fence-spare"
	GuardChain    = "guard"
	RedirectChain = "redirect"
	FenceChain    = "fence"
	AnswerChain   = "answer"
)

// Owned is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h, since Linux 5.12.
const Owned = 2

// Priority is that of the redirect in prerouting. It comes before dstnat (-100),
// where every other user of NAT hooks, so that it does not matter who registered
// first.
const Priority = -110

// Spec says what is led where.
type Spec struct {
	// Metadata is the endpoint that pods ask, Target NMI's listener.
	Metadata, Target netip.AddrPort
	// UID is the user whose sockets may answer from Target.
	UID uint32
	// Bound gives the main table to the socket that makes it.
	Bound bool
	// Own says that Target's address is NMI's alone: it is guarded, too.
	Own bool
}

// Loopback says whether packets from outside must be let through to a loopback
// address, which the kernel does only where it is told to.
func (s Spec) Loopback() bool { return s.Target.Addr().IsLoopback() }

// Table is what is desired of a table, or what the kernel says it holds.
type Table struct {
	Name   string
	Flags  uint32 // 1 is a table that is switched off, Owned one that belongs to a socket
	Uses   uint32 // how many chains, sets and other objects it holds
	Owner  uint32 // the port of that socket; 0 for none
	Chains []Chain
}

// Chain is a base chain with its rules in order.
type Chain struct {
	Name     string
	Kind     nftables.ChainType
	Hook     nftables.ChainHook
	Priority nftables.ChainPriority
	Policy   nftables.ChainPolicy
	Rules    []Rule
}

// Rule is what a rule does, and the comment that it is recognised by.
type Rule struct {
	Comment string
	Exprs   []expr.Any
}

// Chains are the names of all chains that a table of ours may have.
func Chains() []string { return []string{GuardChain, RedirectChain, FenceChain, AnswerChain} }

// GuardsLoopback says whether a table that was read keeps packets from outside
// from loopback addresses: links may let them through then. It is nil if there is
// none.
func GuardsLoopback(found *Table) bool {
	return found != nil && slices.ContainsFunc(found.Chains, func(c Chain) bool {
		return c.Name == GuardChain && slices.ContainsFunc(c.Rules, func(r Rule) bool { return r.Comment == forLoopback })
	})
}

// IsOurs says whether a table is one of those that are installed here.
func IsOurs(family nftables.TableFamily, name string) bool {
	return family == nftables.TableFamilyIPv4 && (name == MainTable || name == FenceTable || name == SpareTable)
}

// Rival names a NAT chain that, if it was registered after ours, takes
// connections before it; "" if there is none. Registering ours again settles
// that, since at one priority the youngest comes first.
func Rival(chains []*nftables.Chain) string {
	for _, c := range chains {
		foreign := c.Table != nil && !IsOurs(c.Table.Family, c.Table.Name)
		if foreign && c.Type == nftables.ChainTypeNAT && *c.Hooknum == *nftables.ChainHookPrerouting && *c.Priority == Priority {
			return fmt.Sprintf("chain %s of table %s has the same priority", c.Name, c.Table.Name)
		}
	}
	return ""
}
