package wire

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// Read returns a table as the kernel holds it, or nil if there is none. Of its
// chains those are read that a table of ours may have; Uses tells whether there
// are others.
func Read(conn *netlink.Conn, name string) (*ruleset.Table, error) {
	found, err := readTable(conn, name)
	if found == nil || err != nil {
		return nil, err
	}
	for _, in := range ruleset.Chains() {
		c, err := readChain(conn, name, in)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading chain %s: %w", in, err)
		}
		found.Chains = append(found.Chains, c)
	}
	if err := readRules(conn, found); err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	return found, nil
}

// tableOwner is NFTA_TABLE_OWNER of linux/netfilter/nf_tables.h.
const tableOwner = 7

func readTable(conn *netlink.Conn, name string) (*ruleset.Table, error) {
	answers, err := conn.Execute(request(unix.NFT_MSG_GETTABLE, 0, attr(unix.NFTA_TABLE_NAME, name)))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading table %s: %w", name, err)
	}
	found := &ruleset.Table{Name: name}
	err = eachAttr(answers, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_TABLE_FLAGS:
			found.Flags = ad.Uint32()
		case unix.NFTA_TABLE_USE:
			found.Uses = ad.Uint32()
		case tableOwner:
			found.Owner = ad.Uint32()
		}
	})
	return found, err
}

func readChain(conn *netlink.Conn, in, name string) (ruleset.Chain, error) {
	answers, err := conn.Execute(request(unix.NFT_MSG_GETCHAIN, 0,
		attr(unix.NFTA_CHAIN_TABLE, in), attr(unix.NFTA_CHAIN_NAME, name)))
	if err != nil {
		return ruleset.Chain{}, err
	}
	c := ruleset.Chain{Name: name}
	err = eachAttr(answers, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TYPE:
			c.Kind = nftables.ChainType(ad.String())
		case unix.NFTA_CHAIN_POLICY:
			c.Policy = nftables.ChainPolicy(ad.Uint32())
		case unix.NFTA_CHAIN_HOOK:
			ad.Nested(func(hook *netlink.AttributeDecoder) error {
				c.Hook, c.Priority = decodeHook(hook)
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
func readRules(conn *netlink.Conn, found *ruleset.Table) error {
	answers, err := conn.Execute(request(unix.NFT_MSG_GETRULE, netlink.Dump, attr(unix.NFTA_RULE_TABLE, found.Name)))
	if err != nil {
		return err
	}
	for _, answer := range answers {
		var in string
		var r ruleset.Rule
		err := eachAttr([]netlink.Message{answer}, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				in = ad.String()
			case unix.NFTA_RULE_USERDATA:
				r.Comment = decodeComment(ad.Bytes())
			case unix.NFTA_RULE_EXPRESSIONS:
				ad.Nested(func(list *netlink.AttributeDecoder) error {
					for list.Next() {
						list.Nested(func(element *netlink.AttributeDecoder) (err error) {
							e, err := decodeExpr(element)
							r.Exprs = append(r.Exprs, e)
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
		for i := range found.Chains {
			if found.Chains[i].Name == in {
				found.Chains[i].Rules = append(found.Chains[i].Rules, r)
			}
		}
	}
	return nil
}
