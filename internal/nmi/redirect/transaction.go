package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// transaction is a list of changes to the node's ruleset that take effect
// together or not at all: between two packets. The nftables package has no
// tables with flags.
type transaction struct{ messages []netlink.Message }

// newTransaction puts a table in place of what is there.
func newTransaction(want table, exists bool) (transaction, error) {
	var t transaction
	if exists {
		t.deleteTable(want.name)
	}
	t.add(unix.NFT_MSG_NEWTABLE, netlink.Create,
		attr(unix.NFTA_TABLE_NAME, want.name), number(unix.NFTA_TABLE_FLAGS, want.flags))
	for _, c := range want.chains {
		t.addChain(want.name, c)
		for _, r := range c.rules {
			if err := t.addRule(want.name, c.name, r); err != nil {
				return transaction{}, fmt.Errorf("encoding the rule %q: %w", r.comment, err)
			}
		}
	}
	return t, nil
}

func (t *transaction) add(kind int, flags netlink.HeaderFlags, attrs ...netlink.Attribute) {
	t.messages = append(t.messages, request(kind, flags|netlink.Acknowledge, attrs...))
}

func (t *transaction) deleteTable(name string) {
	t.add(unix.NFT_MSG_DELTABLE, 0, attr(unix.NFTA_TABLE_NAME, name))
}

func (t *transaction) flushChain(in, name string) {
	t.add(unix.NFT_MSG_DELRULE, 0, attr(unix.NFTA_RULE_TABLE, in), attr(unix.NFTA_RULE_CHAIN, name))
}

func (t *transaction) addChain(in string, c chain) {
	hook := append(encodeNumber(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook)),
		encodeNumber(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))...) //nolint:gosec // two's complement on the wire
	t.add(unix.NFT_MSG_NEWCHAIN, netlink.Create,
		attr(unix.NFTA_CHAIN_TABLE, in), attr(unix.NFTA_CHAIN_NAME, c.name),
		netlink.Attribute{Type: unix.NFTA_CHAIN_HOOK | unix.NLA_F_NESTED, Data: hook},
		number(unix.NFTA_CHAIN_POLICY, uint32(c.policy)),
		attr(unix.NFTA_CHAIN_TYPE, string(c.kind)))
}

func (t *transaction) addRule(in, chain string, r rule) error {
	var list []byte
	for _, e := range r.exprs {
		data, err := expr.Marshal(unix.NFPROTO_IPV4, e)
		if err != nil {
			return err
		}
		list = append(list, nested(unix.NFTA_LIST_ELEM, data)...)
	}
	t.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append,
		attr(unix.NFTA_RULE_TABLE, in), attr(unix.NFTA_RULE_CHAIN, chain),
		netlink.Attribute{Type: unix.NFTA_RULE_EXPRESSIONS | unix.NLA_F_NESTED, Data: list},
		netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: encodeComment(r.comment)})
	return nil
}

// commit sends the transaction and reads the kernel's answer to each change. A
// connection on which it failed may hold answers that nobody has read.
func (t *transaction) commit(conn *netlink.Conn) error {
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

// commitOnce is commit on a connection of its own.
func (t *transaction) commitOnce(namespace int) error {
	conn, err := dial(unix.NETLINK_NETFILTER, namespace)
	if err != nil {
		return err
	}
	return errors.Join(t.commit(conn), conn.Close())
}

func number(kind uint16, value uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, value)}
}

func encodeNumber(kind uint16, value uint32) []byte {
	return encode(kind, binary.BigEndian.AppendUint32(nil, value))
}
