package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// opaque is an expression that none of our rules holds, so that it equals none.
// The nftables package drops expressions that it does not know, which would
// make a rule with one more of them look like ours.
type opaque struct{ expr.Any }

// read returns the table of want's name as the kernel holds it, or nil if there
// is none. Only the chains that want has are read; uses tells whether there are
// others.
func read(conn *netlink.Conn, want table) (*table, error) {
	found, err := readTable(conn, want.name)
	if found == nil || err != nil {
		return nil, err
	}
	for _, w := range want.chains {
		c, err := readChain(conn, want.name, w.name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading chain %s: %w", w.name, err)
		}
		found.chains = append(found.chains, c)
	}
	if err := readRules(conn, found); err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	return found, nil
}

// tableOwner is NFTA_TABLE_OWNER of linux/netfilter/nf_tables.h.
const tableOwner = 7

func readTable(conn *netlink.Conn, name string) (*table, error) {
	answers, err := conn.Execute(request(unix.NFT_MSG_GETTABLE, 0, attr(unix.NFTA_TABLE_NAME, name)))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading table %s: %w", name, err)
	}
	found := &table{name: name}
	err = eachAttr(answers, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_TABLE_FLAGS:
			found.flags = ad.Uint32()
		case unix.NFTA_TABLE_USE:
			found.uses = ad.Uint32()
		case tableOwner:
			found.owner = ad.Uint32()
		}
	})
	return found, err
}

func readChain(conn *netlink.Conn, in, name string) (chain, error) {
	answers, err := conn.Execute(request(unix.NFT_MSG_GETCHAIN, 0,
		attr(unix.NFTA_CHAIN_TABLE, in), attr(unix.NFTA_CHAIN_NAME, name)))
	if err != nil {
		return chain{}, err
	}
	c := chain{name: name}
	err = eachAttr(answers, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TYPE:
			c.kind = nftables.ChainType(ad.String())
		case unix.NFTA_CHAIN_POLICY:
			c.policy = nftables.ChainPolicy(ad.Uint32())
		case unix.NFTA_CHAIN_HOOK:
			ad.Nested(func(hook *netlink.AttributeDecoder) error {
				c.hook, c.priority = decodeHook(hook)
				return nil
			})
		}
	})
	return c, err
}

func decodeHook(ad *netlink.AttributeDecoder) (hook nftables.ChainHook, priority nftables.ChainPriority) {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_HOOK_HOOKNUM:
			hook = nftables.ChainHook(ad.Uint32())
		case unix.NFTA_HOOK_PRIORITY:
			priority = nftables.ChainPriority(ad.Uint32()) //nolint:gosec // two's complement on the wire
		}
	}
	return hook, priority
}

// readRules reads every rule of the table in one go and adds each to its chain.
func readRules(conn *netlink.Conn, found *table) error {
	answers, err := conn.Execute(request(unix.NFT_MSG_GETRULE, netlink.Dump, attr(unix.NFTA_RULE_TABLE, found.name)))
	if err != nil {
		return err
	}
	for _, answer := range answers {
		var in string
		var r rule
		err := eachAttr([]netlink.Message{answer}, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				in = ad.String()
			case unix.NFTA_RULE_USERDATA:
				r.comment = decodeComment(ad.Bytes())
			case unix.NFTA_RULE_EXPRESSIONS:
				ad.Nested(func(list *netlink.AttributeDecoder) error {
					for list.Next() {
						list.Nested(func(element *netlink.AttributeDecoder) (err error) {
							e, err := decodeExpr(element)
							r.exprs = append(r.exprs, e)
							return err
						})
					}
					return nil
				})
			}
		})
		if err != nil {
			return err
		}
		for i := range found.chains {
			if found.chains[i].name == in {
				found.chains[i].rules = append(found.chains[i].rules, r)
			}
		}
	}
	return nil
}

// decodeComment returns the comment, or all of the data if that is anything
// else than one comment: a type, a length and a string that ends with a zero.
func decodeComment(data []byte) string {
	if len(data) > 3 && string(encodeComment(string(data[2:len(data)-1]))) == string(data) {
		return string(data[2 : len(data)-1])
	}
	return string(data)
}

func encodeComment(comment string) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, comment)
}

func decodeExpr(ad *netlink.AttributeDecoder) (expr.Any, error) {
	var name string
	var data []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	}
	e := newExpr(name)
	switch e := e.(type) {
	case opaque:
		return e, nil
	case *expr.Ct:
		return e, decodeCt(data, e)
	}
	if err := expr.Unmarshal(unix.NFPROTO_IPV4, data, e); err != nil {
		return nil, fmt.Errorf("decoding expression %s: %w", name, err)
	}
	if i, ok := e.(*expr.Immediate); ok && i.Register == unix.NFT_REG_VERDICT {
		e = &expr.Verdict{}
		if err := expr.Unmarshal(unix.NFPROTO_IPV4, data, e); err != nil {
			return nil, fmt.Errorf("decoding verdict: %w", err)
		}
	}
	return e, nil
}

// decodeCt reads an expression that loads a part of a connection. The nftables
// package takes the direction for a wider number than the kernel sends.
func decodeCt(data []byte, e *expr.Ct) error {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CT_KEY:
			e.Key = expr.CtKey(ad.Uint32())
		case unix.NFTA_CT_DREG:
			e.Register = ad.Uint32()
		case unix.NFTA_CT_SREG:
			e.Register, e.SourceRegister = ad.Uint32(), true
		case unix.NFTA_CT_DIRECTION:
			e.Direction = uint32(ad.Uint8())
		}
	}
	return ad.Err()
}

func newExpr(name string) expr.Any {
	switch name {
	case "meta":
		return &expr.Meta{}
	case "payload":
		return &expr.Payload{}
	case "cmp":
		return &expr.Cmp{}
	case "ct":
		return &expr.Ct{}
	case "nat":
		return &expr.NAT{}
	case "immediate":
		return &expr.Immediate{}
	case "reject":
		return &expr.Reject{}
	}
	return opaque{}
}

// request is a message to the nftables subsystem about the family ip.
func request(kind int, flags netlink.HeaderFlags, attrs ...netlink.Attribute) netlink.Message {
	// The header of every nfnetlink message: family, version, resource ID.
	data := []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}
	for _, a := range attrs {
		// Marshalling strings as short as ours cannot fail.
		b, _ := netlink.MarshalAttributes([]netlink.Attribute{a})
		data = append(data, b...)
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), //nolint:gosec // constants
			Flags: netlink.Request | flags,
		},
		Data: data,
	}
}

func attr(kind uint16, value string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: []byte(value + "\x00")}
}

// eachAttr calls f for every attribute of nfnetlink messages, whose numbers are
// in network order.
func eachAttr(messages []netlink.Message, f func(*netlink.AttributeDecoder)) error {
	const header = 4
	for _, m := range messages {
		if len(m.Data) < header {
			return fmt.Errorf("message of type %#x is too short: %d bytes", m.Header.Type, len(m.Data))
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[header:])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			f(ad)
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}
