package wire

import (
	"errors"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// Transaction is a list of changes to the node's ruleset that take effect
// together or not at all: between two packets. The nftables package has no
// tables with flags.
type Transaction struct{ messages []netlink.Message }

// Replace puts a table in place of what is there.
func Replace(want ruleset.Table, exists bool) (Transaction, error) {
	var t Transaction
	if exists {
		t.DeleteTable(want.Name)
	}
	t.add(unix.NFT_MSG_NEWTABLE, netlink.Create,
		attr(unix.NFTA_TABLE_NAME, want.Name), number(unix.NFTA_TABLE_FLAGS, want.Flags))
	for _, c := range want.Chains {
		t.addChain(want.Name, c)
		for _, r := range c.Rules {
			if err := t.addRule(want.Name, c.Name, r); err != nil {
				return Transaction{}, fmt.Errorf("encoding the rule %q: %w", r.Comment, err)
			}
		}
	}
	return t, nil
}

func (t *Transaction) add(kind int, flags netlink.HeaderFlags, attrs ...netlink.Attribute) {
	t.messages = append(t.messages, request(kind, flags|netlink.Acknowledge, attrs...))
}

// DeleteTable adds the deletion of a table.
func (t *Transaction) DeleteTable(name string) {
	t.add(unix.NFT_MSG_DELTABLE, 0, attr(unix.NFTA_TABLE_NAME, name))
}

// FlushChain adds the deletion of all rules of a chain.
func (t *Transaction) FlushChain(in, name string) {
	t.add(unix.NFT_MSG_DELRULE, 0, attr(unix.NFTA_RULE_TABLE, in), attr(unix.NFTA_RULE_CHAIN, name))
}

func (t *Transaction) addChain(in string, c ruleset.Chain) {
	hook := append(encodeNumber(unix.NFTA_HOOK_HOOKNUM, uint32(c.Hook)),
		encodeNumber(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))...) //nolint:gosec // two's complement on the wire
	t.add(unix.NFT_MSG_NEWCHAIN, netlink.Create,
		attr(unix.NFTA_CHAIN_TABLE, in), attr(unix.NFTA_CHAIN_NAME, c.Name),
		netlink.Attribute{Type: unix.NFTA_CHAIN_HOOK | unix.NLA_F_NESTED, Data: hook},
		number(unix.NFTA_CHAIN_POLICY, uint32(c.Policy)),
		attr(unix.NFTA_CHAIN_TYPE, string(c.Kind)))
}

func (t *Transaction) addRule(in, chain string, r ruleset.Rule) error {
	var list []byte
	for _, e := range r.Exprs {
		data, err := expr.Marshal(unix.NFPROTO_IPV4, e)
		if err != nil {
			return err
		}
		list = append(list, Nested(unix.NFTA_LIST_ELEM, data)...)
	}
	t.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append,
		attr(unix.NFTA_RULE_TABLE, in), attr(unix.NFTA_RULE_CHAIN, chain),
		netlink.Attribute{Type: unix.NFTA_RULE_EXPRESSIONS | unix.NLA_F_NESTED, Data: list},
		netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: encodeComment(r.Comment)})
	return nil
}

// Commit sends the transaction and reads the kernel's answer to each change. A
// connection on which it failed may hold answers that nobody has read.
func (t *Transaction) Commit(conn *netlink.Conn) error {
	edge := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request},
			Data:   []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	all := append([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, t.messages...)
	if _, err := conn.SendMessages(append(all, edge(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	for received := 0; received < len(t.messages); {
		answers, err := conn.Receive()
		if err != nil {
			return err // what follows the first failure fails with it
		}
		received += len(answers)
	}
	return nil
}

// CommitOnce is Commit on a connection of its own.
func (t *Transaction) CommitOnce(namespace int) error {
	conn, err := Dial(unix.NETLINK_NETFILTER, namespace)
	if err != nil {
		return err
	}
	return errors.Join(t.Commit(conn), conn.Close())
}
