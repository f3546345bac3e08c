package redirect_test

import (
	"encoding/binary"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/loopback"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// harm is something that is done to our table, and the words that say so.
type harm struct {
	do    func(*nftables.Conn, *nftables.Table)
	words string
}

// damages returns what others may do to our main table.
func damages() map[string]harm {
	all := ruleDamages()
	maps.Copy(all, chainDamages())
	return all
}

func ruleDamages() map[string]harm {
	chainOf := func(table *nftables.Table, name string) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: table}
	}
	accept := func(table *nftables.Table, name string) *nftables.Rule {
		return &nftables.Rule{
			Table: table, Chain: chainOf(table, name), Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}},
		}
	}
	return map[string]harm{
		"the table is deleted": {
			func(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) },
			"table ip aad-pod-identity: missing",
		},
		"the table is flushed": {
			func(c *nftables.Conn, table *nftables.Table) { c.FlushTable(table) },
			"chain redirect: has 0 rules, want 1",
		},
		"the whole ruleset is flushed": {
			func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() },
			"table ip aad-pod-identity: missing",
		},
		"a chain is flushed": {
			func(c *nftables.Conn, table *nftables.Table) { c.FlushChain(chainOf(table, "redirect")) },
			"chain redirect: has 0 rules, want 1",
		},
		"a chain is deleted": {
			func(c *nftables.Conn, table *nftables.Table) {
				c.FlushChain(chainOf(table, "fence"))
				c.DelChain(chainOf(table, "fence"))
			},
			"chain fence: missing",
		},
		"a chain too many": {
			func(c *nftables.Conn, table *nftables.Table) { c.AddChain(chainOf(table, "other")) },
			"holds 5 chains and other objects, want 4",
		},
		"a rule in front of ours": {
			func(c *nftables.Conn, table *nftables.Table) { c.InsertRule(accept(table, "redirect")) },
			"chain redirect: has 2 rules, want 1",
		},
		"a rule behind ours": {
			func(c *nftables.Conn, table *nftables.Table) { c.AddRule(accept(table, "fence")) },
			"chain fence: has 4 rules, want 3",
		},
		"another rule in place of ours": {
			func(c *nftables.Conn, table *nftables.Table) {
				c.FlushChain(chainOf(table, "answer"))
				c.AddRule(accept(table, "answer"))
			},
			`chain answer: rule 1 is not "only NMI answers from its address"`,
		},
	}
}

func chainDamages() map[string]harm {
	return map[string]harm{
		"a chain of another policy": {
			func(c *nftables.Conn, table *nftables.Table) {
				drop := nftables.ChainPolicyDrop
				c.AddChain(&nftables.Chain{
					Name: "answer", Table: table, Type: nftables.ChainTypeFilter, Policy: &drop,
					Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
				})
			},
			"chain answer: has policy 0, want 1",
		},
		"a chain of another priority": {
			recreated("redirect", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
			"chain redirect: has priority -100, want -110",
		},
		"a chain of another type": {
			recreated("redirect", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(-110)),
			`chain redirect: has type "filter", want "nat"`,
		},
		"a chain at another hook": {
			recreated("fence", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter),
			"chain fence: is at hook 1, want 2",
		},
	}
}

// fenceDamages returns what others may do to the other one.
func fenceDamages() map[string]harm {
	const name = "table ip " + fenceTable
	fence := func(table *nftables.Table) *nftables.Chain { return &nftables.Chain{Name: "fence", Table: table} }
	return map[string]harm{
		"the fence's table is deleted": {
			func(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) },
			name + ": missing",
		},
		"the fence's table is flushed": {
			func(c *nftables.Conn, table *nftables.Table) { c.FlushTable(table) },
			name + ", chain fence: has 0 rules, want 3",
		},
		"the fence is deleted": {
			func(c *nftables.Conn, table *nftables.Table) { c.FlushChain(fence(table)); c.DelChain(fence(table)) },
			name + ", chain fence: missing",
		},
		"a rule in front of the fence's": {
			func(c *nftables.Conn, table *nftables.Table) {
				c.InsertRule(&nftables.Rule{Table: table, Chain: fence(table), Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
			},
			name + ", chain fence: has 4 rules, want 3",
		},
		"a set in the fence's table": {
			func(c *nftables.Conn, table *nftables.Table) {
				// Without an ID, one is counted up that all connections share.
				_ = c.AddSet(&nftables.Set{Table: table, ID: 1, Name: "other", KeyType: nftables.TypeIPAddr}, nil)
			},
			name + ": holds 4 chains and other objects, want 3",
		},
	}
}

// eachDamage runs f as a test for everything that others may do to our tables,
// with each target.
func eachDamage(t *testing.T, f func(w *world, do func(), words string)) {
	t.Helper()
	for table, all := range map[string]map[string]harm{mainTable: damages(), fenceTable: fenceDamages()} {
		for name, harm := range all {
			t.Run(name, func(t *testing.T) {
				eachTarget(t, func(w *world) {
					f(w, func() { w.damageTable(table, harm.do) }, harm.words)
				})
			})
		}
	}
}

// recreated puts another chain of the same name in a chain's place.
func recreated(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) func(*nftables.Conn, *nftables.Table) {
	return func(c *nftables.Conn, table *nftables.Table) {
		old := &nftables.Chain{Name: name, Table: table}
		c.FlushChain(old)
		c.DelChain(old)
		c.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
	}
}

func TestVerifyDetectsAndEnsureRepairs(t *testing.T) {
	eachDamage(t, func(w *world, do func(), words string) {
		d := w.ensured()
		do()
		w.detects(d, words)
	})
}

// detects fails the test unless Verify tells of the damage, Ensure repairs it
// for that reason, and Verify is content again.
func (w *world) detects(d *redirect.NFTables, words string) {
	w.Helper()
	err := d.Verify(w.Context())
	if _, ok := errors.AsType[*ruleset.Damage](err); !ok || !strings.Contains(err.Error(), words) {
		w.Errorf("Verify: got %v, want a *Damage with: %s", err, words)
	}
	change := must2(d.Ensure(w.Context()))(w)
	if !change.Rules || !strings.Contains(change.Reason, words) {
		w.Errorf("Ensure: got %+v, want a repair for: %s", change, words)
	}
	w.must(d.Verify(w.Context()))
}

func TestVerifyReadsRulesClosely(t *testing.T) {
	for name, change := range map[string]func(*nftables.Rule){
		"another comment":        func(r *nftables.Rule) { r.UserData = userdata.AppendString(nil, userdata.TypeComment, "x") },
		"no comment":             func(r *nftables.Rule) { r.UserData = nil },
		"data behind a comment":  func(r *nftables.Rule) { r.UserData = append(r.UserData, 9, 1, 0) },
		"a comment cut off":      func(r *nftables.Rule) { r.UserData = []byte{0, 200, 'x'} },
		"one expression more":    func(r *nftables.Rule) { r.Exprs = append([]expr.Any{&expr.Counter{}}, r.Exprs...) },
		"one expression less":    func(r *nftables.Rule) { r.Exprs = r.Exprs[2:] },
		"another port":           func(r *nftables.Rule) { r.Exprs[5].(*expr.Cmp).Data = []byte{0, 81} },
		"another target":         func(r *nftables.Rule) { r.Exprs[6].(*expr.Immediate).Data = []byte{127, 0, 0, 2} },
		"another comparison":     func(r *nftables.Rule) { r.Exprs[3].(*expr.Cmp).Op = expr.CmpOpNeq },
		"another part of packet": func(r *nftables.Rule) { r.Exprs[2].(*expr.Payload).Offset = 12 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newNode(t)
			d := w.ensured()
			w.damage(func(c *nftables.Conn, table *nftables.Table) {
				rules := must2(c.GetRules(table, &nftables.Chain{Name: "redirect", Table: table}))(w)
				change(rules[0])
				c.ReplaceRule(rules[0])
			})
			w.detects(d, `chain redirect: rule 1 is not "pods ask NMI for metadata"`)
		})
	}
}

func TestVerifyDetectsADormantTable(t *testing.T) {
	for _, table := range []string{mainTable, fenceTable, spareTable} {
		t.Run(table, func(t *testing.T) {
			w := newWorld(t)
			d := w.ensured()
			w.must(putToSleep(w.node.FD(), mainTable))
			w.refused(w.pod, metadata) // so it sleeps
			w.noLeaks()
			w.must(putToSleep(w.node.FD(), fenceTable))
			w.refused(w.pod, metadata) // the spare is awake
			w.noLeaks()
			w.must(putToSleep(w.node.FD(), spareTable))
			w.hears(w.pod, metadata, "azure hears "+podIP) // so all sleep
			must2(d.Ensure(t.Context()))(w)
			w.must(putToSleep(w.node.FD(), table))
			w.detects(d, "table ip "+table+": has flags 0x1, want 0x0")
			w.refused(w.pod, metadata)
		})
	}
}

// putToSleep sets the dormant flag of a table, which the nftables package
// cannot.
func putToSleep(namespace int, table string) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: namespace})
	if err != nil {
		return err
	}
	defer conn.Close()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(table + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, unix.NFT_TABLE_F_DORMANT)},
	})
	if err != nil {
		return err
	}
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, header []byte, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: append(header, data...)}
	}
	whole := []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	_, err = conn.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, whole, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge, []byte{unix.NFPROTO_IPV4, 0, 0, 0}, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, whole, nil),
	})
	if err != nil {
		return err
	}
	_, err = conn.Receive()
	return err
}

func TestVerifyDetectsLinks(t *testing.T) {
	w := newWorld(t)
	d := w.ensured()
	w.must(w.node.SetSysctl("net.ipv4.conf.vethpod.route_localnet", "0"))
	err := d.Verify(t.Context())
	if link, ok := errors.AsType[*loopback.LinkError](err); !ok || link.Link != "vethpod" {
		t.Errorf("got %v, want a *LinkError for vethpod", err)
	}
	change := must2(d.Ensure(t.Context()))(w)
	if change.Rules || change.Links != 1 {
		t.Errorf("got %+v, want one link", change)
	}
	w.must(d.Verify(t.Context()))
}
