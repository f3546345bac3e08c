package redirect

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

// commitOwned commits by the socket that owns the table, and gives that up when
// it fails: the table goes with it, and pods are refused until the next Ensure.
func (n *NFTables) commitOwned(change wire.Transaction) error {
	if n.owner == nil {
		conn, err := wire.Dial(unix.NETLINK_NETFILTER, n.config.NetNS)
		if err != nil {
			return err
		}
		port, err := wire.PortOf(conn)
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		n.owner, n.ownerPort = conn, port
	}
	if err := change.Commit(n.owner); err != nil {
		return errors.Join(err, n.disown())
	}
	return nil
}

// disown closes the socket that owns the table, and with it the table.
func (n *NFTables) disown() error {
	if n.owner == nil {
		return nil
	}
	err := n.owner.Close()
	n.owner = nil
	return err
}

// held says that a table belongs to a socket that is not ours.
func (n *NFTables) held(found *ruleset.Table) bool {
	return found != nil && found.Flags&ruleset.Owned != 0 && (n.owner == nil || found.Owner != n.ownerPort)
}

// Refuse takes a redirect away that is bound to this process, before it ends:
// new connections of pods are refused from here on, and those that were led to
// the target stay so. An Ensure that comes later brings it back.
func (n *NFTables) Refuse() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner == nil {
		return nil
	}
	var change wire.Transaction
	change.FlushChain(ruleset.MainTable, ruleset.RedirectChain)
	if err := n.commitOwned(change); err != nil {
		return fmt.Errorf("taking the redirect away: %w", explain(err))
	}
	return nil
}
