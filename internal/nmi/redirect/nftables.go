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
)

// NFTables is the [Datapath] of nodes whose kernel routes pods' packets: tables
// of its own in the family ip, spoken to by netlink. Its methods may be called
// by several goroutines at once.
type NFTables struct {
	config  Config
	desired []table

	// contested says that a NAT chain of somebody else's may have come before
	// ours since ours was registered.
	contested atomic.Bool

	mu      sync.Mutex // held while anything is read or changed, and protects the following
	ensured bool       // the last Ensure has found or put the rules in place
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
		n.ensured = false
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
func (n *NFTables) ensureTable(want table, contested bool) (string, error) {
	found, err := n.read(want)
	if err != nil {
		return "", err
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
func (n *NFTables) reason(want table, found *table, contested bool) (string, error) {
	if damage := compare(want, found); damage != nil {
		return damage.Error(), nil
	}
	if !contested || want.name != mainTable {
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
		foreign := c.Table != nil && !isOurs(c.Table.Family, c.Table.Name)
		if foreign && c.Type == nftables.ChainTypeNAT && *c.Hooknum == *nftables.ChainHookPrerouting && *c.Priority == natPriority {
			return fmt.Sprintf("chain %s of table %s has the same priority", c.Name, c.Table.Name)
		}
	}
	return ""
}

// replace installs a table in place of what is there, in one transaction: the
// kernel switches from the old rules to the new between two packets.
func (n *NFTables) replace(want table, exists bool) error {
	conn, err := n.conn()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: want.name, Family: nftables.TableFamilyIPv4}
	if exists {
		conn.DelTable(t)
	}
	conn.AddTable(t)
	for _, c := range want.chains {
		added := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: t, Type: c.kind, Hooknum: &c.hook, Priority: &c.priority, Policy: &c.policy,
		})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: added, Exprs: r.exprs, UserData: encodeComment(r.comment)})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replacing table %s: %w", want.name, err)
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
	for _, want := range n.desired {
		found, err := n.read(want)
		if err != nil {
			return fmt.Errorf("verifying redirect rules: %w", explain(err))
		}
		if damage := compare(want, found); damage != nil {
			return fmt.Errorf("verifying redirect rules: %w", damage)
		}
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
	for _, t := range n.desired {
		if err := n.deleteTable(t.name); err != nil {
			return fmt.Errorf("deleting redirect rules: %w", explain(err))
		}
	}
	return nil
}

func (n *NFTables) deleteTable(name string) error {
	conn, err := n.conn()
	if err != nil {
		return err
	}
	conn.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting table %s: %w", name, err)
	}
	return nil
}

func (n *NFTables) read(want table) (*table, error) {
	conn, err := dial(unix.NETLINK_NETFILTER, n.config.NetNS)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return read(conn, want)
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
