package redirect

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// NFTables is the [Datapath] of nodes whose kernel routes pods' packets: a table
// of its own in the family ip, spoken to by netlink. Its methods may be called
// by several goroutines at once.
type NFTables struct {
	config  Config
	desired ruleset

	// contested says that a NAT chain of somebody else's may have come before
	// ours since ours was registered.
	contested atomic.Bool

	mu      sync.Mutex // held while anything is read or changed, and protects the following
	ensured bool       // this process has found or put the rules in place once
}

var _ Datapath = (*NFTables)(nil)

// New checks a config. It touches nothing.
func New(config Config) (*NFTables, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &NFTables{config: config, desired: desired(config)}
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
		return change, fmt.Errorf("ensuring redirect rules: %w", explain(err))
	}
	if change.Rules || !n.ensured {
		change.Flows, change.FlowsErr = forgetFlows(n.config)
	}
	n.ensured = true
	if n.config.loopback() {
		change.Links, err = setRouteLocalnet(n.config.NetNS, true)
	}
	if err != nil {
		return change, fmt.Errorf("letting links reach %s: %w", n.config.Target, denied(err))
	}
	return change, nil
}

func (n *NFTables) ensureRules() (Change, error) {
	found, err := n.read()
	if err != nil {
		return Change{}, err
	}
	// Cleared first, so that a rival that registers from here on counts again.
	contested := n.contested.Swap(false)
	reason, err := n.reason(found, contested)
	if err == nil && reason != "" {
		err = n.replace(found != nil)
	}
	if found != nil && errors.Is(err, unix.ENOENT) { // deleted since it was read
		err = n.replace(false)
	}
	if err != nil {
		n.contested.Store(contested)
		return Change{}, err
	}
	return Change{Rules: reason != "", Reason: reason}, nil
}

// reason says why the rules must be replaced, "" if they need not be.
func (n *NFTables) reason(found *ruleset, contested bool) (string, error) {
	if damage := compare(n.desired, found); damage != nil {
		return damage.Error(), nil
	}
	if !contested {
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
	return rival(chains), nil
}

// rival names a NAT chain that, if it was registered after ours, takes
// connections before it; "" if there is none. Registering ours again settles
// that, since at one priority the youngest comes first.
func rival(chains []*nftables.Chain) string {
	for _, c := range chains {
		foreign := c.Table != nil && (c.Table.Name != tableName || c.Table.Family != nftables.TableFamilyIPv4)
		if foreign && c.Type == nftables.ChainTypeNAT && *c.Hooknum == *nftables.ChainHookPrerouting && *c.Priority == natPriority {
			return fmt.Sprintf("chain %s of table %s has the same priority", c.Name, c.Table.Name)
		}
	}
	return ""
}

// replace installs the desired table in place of what is there, in one
// transaction: the kernel switches from the old rules to the new between two
// packets.
func (n *NFTables) replace(exists bool) error {
	conn, err := n.conn()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	if exists {
		conn.DelTable(table)
	}
	conn.AddTable(table)
	for _, c := range n.desired.chains {
		added := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: table, Type: c.kind, Hooknum: &c.hook, Priority: &c.priority, Policy: &c.policy,
		})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: added, Exprs: r.exprs, UserData: encodeComment(r.comment)})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replacing table %s: %w", tableName, err)
	}
	return nil
}

// Verify implements [Datapath]. What is found wrong with the rules is a
// [*Damage], with links a [*LinkError].
func (n *NFTables) Verify(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	found, err := n.read()
	if err != nil {
		return fmt.Errorf("verifying redirect rules: %w", explain(err))
	}
	if damage := compare(n.desired, found); damage != nil {
		return fmt.Errorf("verifying redirect rules: %w", damage)
	}
	if !n.config.loopback() {
		return nil
	}
	if err := verifyRouteLocalnet(n.config.NetNS); err != nil {
		return fmt.Errorf("verifying links: %w", denied(err))
	}
	return nil
}

// Delete implements [Datapath]. Links stop letting packets through to loopback
// before the guard goes. It does not matter who let them: without the guard, a
// link that does opens the node's own services to pods.
func (n *NFTables) Delete(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.config.loopback() {
		if _, err := setRouteLocalnet(n.config.NetNS, false); err != nil {
			return fmt.Errorf("closing links to loopback: %w", denied(err))
		}
	}
	if err := n.deleteTable(); err != nil {
		return fmt.Errorf("deleting redirect rules: %w", explain(err))
	}
	return nil
}

func (n *NFTables) deleteTable() error {
	conn, err := n.conn()
	if err != nil {
		return err
	}
	conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (n *NFTables) read() (*ruleset, error) {
	conn, err := dial(unix.NETLINK_NETFILTER, n.config.NetNS)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return read(conn, n.desired)
}

// conn returns a connection that opens a socket per operation, so that one that
// failed leaves nothing unread behind.
func (n *NFTables) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(n.config.NetNS))
}

func dial(family, namespace int) (*netlink.Conn, error) {
	conn, err := netlink.Dial(family, &netlink.Config{NetNS: namespace})
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return conn, nil
}
