package redirect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/loopback"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/wire"
)

// NFTables is the [Datapath] of nodes whose kernel routes pods' packets: tables
// of its own in the family ip, spoken to by netlink. Its methods may be called
// by several goroutines at once.
type NFTables struct {
	config  Config
	desired []ruleset.Table

	// contested says that a NAT chain of somebody else's may have come before
	// ours since ours was registered.
	contested atomic.Bool

	mu      sync.Mutex    // held while anything is read or changed, and protects the following
	ensured bool          // the last Ensure has found or put the rules in place
	owner   *netlink.Conn // owns the main table, if that is bound; nil until it is there

	ownerPort uint32 // by which the kernel knows the owner
}

var _ Datapath = (*NFTables)(nil)

// New checks a config. It touches nothing.
func New(config Config) (*NFTables, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &NFTables{config: config, desired: ruleset.Desired(config.spec())}
	n.contested.Store(true)
	return n, nil
}

// Ensure implements [Datapath]. NMI's own link is there before pods are led to it,
// and the guard is in force before the first link lets packets through to
// loopback. Nothing is changed while the redirect is another process's.
func (n *NFTables) Ensure(ctx context.Context) (Change, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var change Change
	if err := ctx.Err(); err != nil {
		return change, err
	}
	found, err := n.look()
	if err == nil {
		err = n.ensureOwnLink(found, &change)
	}
	if err == nil {
		err = n.ensureRules(found, &change)
	}
	if err != nil {
		n.ensured = false
		return change, fmt.Errorf("ensuring the redirect: %w", err)
	}
	if change.Rules || !n.ensured {
		change.Flows, change.FlowsErr = forgetFlows(n.config.NetNS, astray(n.config))
		err = n.removeOwnLink(&change)
	}
	n.ensured = err == nil
	if errLinks := n.openLoopback(&change); err == nil {
		err = errLinks
	}
	return change, err
}

// ensureRules puts the tables right.
func (n *NFTables) ensureRules(found tables, change *Change) error {
	// Cleared first, so that a rival that registers from here on counts again.
	contested := n.contested.Swap(false)
	err := n.ensureTables(n.desired, found, contested, change)
	if err != nil && contested {
		n.contested.Store(true)
	}
	return err
}

// ensureTables puts each table right by itself, so that trouble with one keeps no
// other away. Links that let packets through to loopback stop before a guard goes.
func (n *NFTables) ensureTables(desired []ruleset.Table, found tables, contested bool, change *Change) error {
	var err error
	if !n.config.spec().Loopback() && found.guardLoopback() {
		if change.Links, err = loopback.Set(n.config.NetNS, false); err != nil {
			return fmt.Errorf("closing links to loopback: %w", denied(err))
		}
	}
	var reasons []string
	var errs []error
	for _, want := range desired {
		reason, err := n.ensureTable(want, found[want.Name], contested)
		if err != nil {
			errs = append(errs, explain(err))
		} else if reason != "" {
			reasons = append(reasons, reason)
		}
	}
	change.Rules, change.Reason = reasons != nil, strings.Join(reasons, "; ")
	return utilerrors.NewAggregate(errs)
}

// ensureTable says why it had to replace the table, "" if it had not.
func (n *NFTables) ensureTable(want ruleset.Table, found *ruleset.Table, contested bool) (string, error) {
	reason, err := n.reason(want, found, contested)
	if err == nil && reason != "" {
		err = n.replace(want, found != nil)
	}
	if found != nil && errors.Is(err, unix.ENOENT) { // deleted since it was read
		err = n.replace(want, false)
	}
	return reason, err
}

// reason says why a table must be replaced, "" if it need not be.
func (n *NFTables) reason(want ruleset.Table, found *ruleset.Table, contested bool) (string, error) {
	if damage := ruleset.Compare(want, found); damage != nil {
		return damage.Error(), nil
	}
	if !contested || want.Name != ruleset.MainTable {
		return "", nil
	}
	conn, err := n.conn()
	if err != nil {
		return "", err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return "", fmt.Errorf("listing chains: %w", err)
	}
	return ruleset.Rival(chains), nil
}

// replace installs a table in place of what is there, in one transaction: the
// kernel switches from the old rules to the new between two packets.
func (n *NFTables) replace(want ruleset.Table, exists bool) error {
	change, err := wire.Replace(want, exists)
	if err != nil {
		return err
	}
	if want.Flags&ruleset.Owned == 0 {
		err = change.CommitOnce(n.config.NetNS)
	} else {
		err = n.commitOwned(change)
	}
	if err != nil {
		return fmt.Errorf("replacing table %s: %w", want.Name, err)
	}
	return nil
}

// Verify implements [Datapath]. What is found wrong with the rules is a
// [*ruleset.Damage], with links a [*loopback.LinkError] or an
// [*ownlink.DamageError].
func (n *NFTables) Verify(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	found, err := n.look()
	if err != nil {
		return fmt.Errorf("verifying redirect rules: %w", err)
	}
	for _, want := range n.desired {
		if damage := ruleset.Compare(want, found[want.Name]); damage != nil {
			return fmt.Errorf("verifying redirect rules: %w", damage)
		}
	}
	if err := n.verifyLinks(); err != nil {
		return fmt.Errorf("verifying links: %w", denied(err))
	}
	return nil
}

// Delete implements [Datapath]. Links stop letting packets through to loopback
// before the guard goes. It does not matter who let them: without the guard, a
// link that does opens the node's own services to pods.
func (n *NFTables) Delete(ctx context.Context) (Removal, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var r Removal
	if err := ctx.Err(); err != nil {
		return r, err
	}
	found, err := n.look()
	if err != nil {
		return r, fmt.Errorf("deleting redirect rules: %w", err)
	}
	if n.config.spec().Loopback() || found.guardLoopback() {
		if r.Links, err = loopback.Set(n.config.NetNS, false); err != nil {
			return r, fmt.Errorf("closing links to loopback: %w", denied(err))
		}
	}
	for _, t := range n.desired {
		existed, err := n.deleteTable(t.Name)
		if err != nil {
			return r, fmt.Errorf("deleting redirect rules: %w", explain(err))
		}
		if existed {
			r.Tables = append(r.Tables, t.Name)
		}
	}
	r.Flows, r.FlowsErr = forgetFlows(n.config.NetNS, led(n.config))
	if r.OwnLink, err = ownlink.Remove(n.config.NetNS); err != nil {
		return r, fmt.Errorf("deleting NMI's own link: %w", denied(err))
	}
	return r, nil
}

// Tables names the tables on the node that are NMI's, of this agent or of one
// before it.
func (n *NFTables) Tables() ([]string, error) {
	conn, err := wire.Dial(unix.NETLINK_NETFILTER, n.config.NetNS)
	if err != nil {
		return nil, explain(err)
	}
	defer conn.Close()
	var out []string
	for _, t := range n.desired {
		found, err := wire.Read(conn, t.Name)
		if err != nil {
			return nil, explain(err)
		}
		if found != nil {
			out = append(out, t.Name)
		}
	}
	return out, nil
}

// deleteTable says whether there was a table. One that is bound is deleted by its
// owner's socket.
func (n *NFTables) deleteTable(name string) (bool, error) {
	var change wire.Transaction
	change.DeleteTable(name)
	var err error
	if name == ruleset.MainTable && n.owner != nil {
		err = errors.Join(change.Commit(n.owner), n.disown())
	} else {
		err = change.CommitOnce(n.config.NetNS)
	}
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("deleting table %s: %w", name, err)
	}
	return true, nil
}

// tables are those of ours that the node has, by name.
type tables map[string]*ruleset.Table

// guardLoopback says whether one of them has the guard that links need which let
// packets through to loopback.
func (t tables) guardLoopback() bool {
	for _, table := range t {
		if ruleset.GuardsLoopback(table) {
			return true
		}
	}
	return false
}

// look reads all tables. If the main one belongs to another process that is
// [ErrHeld]: that process would put back what it does not own, and go on serving.
func (n *NFTables) look() (tables, error) {
	conn, err := wire.Dial(unix.NETLINK_NETFILTER, n.config.NetNS)
	if err != nil {
		return nil, explain(err)
	}
	defer conn.Close()
	all := tables{}
	for _, t := range n.desired {
		found, err := wire.Read(conn, t.Name)
		if err != nil {
			return nil, explain(err)
		}
		if n.held(found) {
			return nil, fmt.Errorf("table %s: %w", t.Name, ErrHeld)
		}
		all[t.Name] = found
	}
	return all, nil
}

// conn returns a connection that opens a socket per operation, so that one that
// failed leaves nothing unread behind.
func (n *NFTables) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(n.config.NetNS))
}
