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

// Ensure implements [Datapath]. The guard is in force before the first link
// lets packets through to loopback.
func (n *NFTables) Ensure(ctx context.Context) (Change, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Change{}, err
	}
	change, err := n.ensureRules()
	if err != nil {
		n.ensured = false
		return change, fmt.Errorf("ensuring redirect rules: %w", explain(err))
	}
	if change.Rules || !n.ensured {
		change.Flows, change.FlowsErr = forgetFlows(n.config.NetNS, astray(n.config))
	}
	n.ensured = true
	if n.config.spec().Loopback() {
		change.Links, err = loopback.Set(n.config.NetNS, true)
	}
	if err != nil {
		return change, fmt.Errorf("letting links reach %s: %w", n.config.Target, denied(err))
	}
	return change, nil
}

// ensureRules puts each table right by itself, so that trouble with one keeps no
// other away.
func (n *NFTables) ensureRules() (Change, error) {
	// Cleared first, so that a rival that registers from here on counts again.
	contested := n.contested.Swap(false)
	var reasons []string
	var errs []error
	for _, want := range n.desired {
		reason, err := n.ensureTable(want, contested)
		if err != nil {
			errs = append(errs, err)
		} else if reason != "" {
			reasons = append(reasons, reason)
		}
	}
	if errs != nil && contested {
		n.contested.Store(true)
	}
	return Change{Rules: reasons != nil, Reason: strings.Join(reasons, "; ")}, utilerrors.NewAggregate(errs)
}

// ensureTable says why it had to replace the table, "" if it had not.
func (n *NFTables) ensureTable(want ruleset.Table, contested bool) (string, error) {
	found, err := n.read(want)
	if err != nil {
		return "", err
	}
	if n.held(found) {
		return "", fmt.Errorf("table %s: %w", want.Name, ErrHeld)
	}
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

// Verify implements [Datapath]. What is found wrong with the rules is a
// [*ruleset.Damage], with links a [*loopback.LinkError].
func (n *NFTables) Verify(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, want := range n.desired {
		found, err := n.read(want)
		if err != nil {
			return fmt.Errorf("verifying redirect rules: %w", explain(err))
		}
		if n.held(found) {
			return fmt.Errorf("verifying redirect rules: table %s: %w", want.Name, ErrHeld)
		}
		if damage := ruleset.Compare(want, found); damage != nil {
			return fmt.Errorf("verifying redirect rules: %w", damage)
		}
	}
	if !n.config.spec().Loopback() {
		return nil
	}
	if err := loopback.Verify(n.config.NetNS); err != nil {
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
	if err := n.free(); err != nil {
		return r, fmt.Errorf("deleting redirect rules: %w", explain(err))
	}
	if n.config.spec().Loopback() {
		var err error
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
	return r, nil
}

// free makes sure that the table can be deleted: another process that runs would
// put back what it does not own, and go on serving.
func (n *NFTables) free() error {
	found, err := n.read(n.desired[0])
	if err == nil && n.held(found) {
		err = fmt.Errorf("table %s: %w", found.Name, ErrHeld)
	}
	return err
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

func (n *NFTables) read(want ruleset.Table) (*ruleset.Table, error) {
	conn, err := wire.Dial(unix.NETLINK_NETFILTER, n.config.NetNS)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return wire.Read(conn, want)
}

// conn returns a connection that opens a socket per operation, so that one that
// failed leaves nothing unread behind.
func (n *NFTables) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(n.config.NetNS))
}
