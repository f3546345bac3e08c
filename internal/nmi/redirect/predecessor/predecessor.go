// Package predecessor finds and removes what AAD Pod Identity v1.8.17 left in a
// node's NAT rules when its agent crashed: the chain aad-metadata, by which it led
// pods to itself.
//
// Where iptables keeps its rules in nftables, the chain is removed. Where it has
// tables of its own, the chain is only found: those tables are replaced whole, and
// whoever does so without iptables' own lock undoes what others do meanwhile. The
// package must not touch a rule that does not belong to that chain.
package predecessor

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The names are AAD Pod Identity's own.
const (
	chainName = "aad-metadata"
	tableName = "nat"
)

// Found is what was there of the old chain. The zero Found is: nothing.
type Found struct {
	// Removed says that the chain was in nftables, and is there no more.
	Removed bool

	// Legacy says that the chain is in the tables of legacy iptables, and stays
	// until somebody enters [Commands] on the node.
	Legacy bool
}

// Commands returns the commands that remove the chain from legacy iptables.
func Commands() []string {
	return []string{
		"iptables-legacy -w -t nat -D PREROUTING -j aad-metadata",
		"iptables-legacy -w -t nat -F aad-metadata",
		"iptables-legacy -w -t nat -X aad-metadata",
	}
}

// Remove removes the chain where it can, in the network namespace of a file
// descriptor; 0 is the process's own. It needs CAP_NET_ADMIN. What it found before
// an error is valid.
func Remove(namespace int) (Found, error) {
	var found Found
	var errs []error
	var err error
	if found.Removed, err = removeChain(namespace); err != nil {
		errs = append(errs, fmt.Errorf("removing chain %s of table ip %s: %w", chainName, tableName, err))
	}
	if found.Legacy, err = legacyHas(namespace); err != nil {
		errs = append(errs, fmt.Errorf("looking for chain %s in legacy iptables: %w", chainName, err))
	}
	return found, errors.Join(errs...)
}

// removeChain removes the chain and every jump to it together. It is tried again
// when somebody changed the rules meanwhile.
func removeChain(namespace int) (bool, error) {
	var err error
	for range 3 {
		var there bool
		if there, err = tryRemoveChain(namespace); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			return there && err == nil, err
		}
	}
	return false, err
}

func tryRemoveChain(namespace int) (bool, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(namespace))
	if err != nil {
		return false, err
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("listing chains: %w", err)
	}
	var old *nftables.Chain
	for _, chain := range chains {
		switch {
		case chain.Table.Name != tableName:
		case chain.Name == chainName:
			old = chain
		case chain.Hooknum != nil: // the old agent had its chain called from there
			if err := deleteJumps(conn, table, chain); err != nil {
				return false, err
			}
		}
	}
	if old == nil {
		return false, nil
	}
	conn.FlushChain(old)
	conn.DelChain(old)
	return true, conn.Flush()
}

// deleteJumps adds the deletion of every jump to the old chain to what conn will
// send.
func deleteJumps(conn *nftables.Conn, table *nftables.Table, from *nftables.Chain) error {
	rules, err := conn.GetRules(table, from)
	if err != nil {
		return fmt.Errorf("reading the rules of chain %s: %w", from.Name, err)
	}
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			if verdict, ok := e.(*expr.Verdict); ok && verdict.Chain == chainName {
				if err := conn.DelRule(rule); err != nil {
					return fmt.Errorf("deleting a rule of chain %s: %w", from.Name, err)
				}
			}
		}
	}
	return nil
}
