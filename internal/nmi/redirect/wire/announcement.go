package wire

import (
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// Subject is what an announcement is about: one of our tables, or a NAT chain
// that may come before ours.
type Subject struct{ Ours, Rival bool }

// Describe reads an announcement. One that cannot be read may be about
// anything.
func Describe(m netlink.Message) Subject {
	const subsystem, kind = 0xff00, 0x00ff
	switch {
	case m.Header.Type&subsystem>>8 != unix.NFNL_SUBSYS_NFTABLES:
		return Subject{Ours: true, Rival: true}
	case m.Header.Type&kind == unix.NFT_MSG_NEWGEN: // ends each transaction, names no table
		return Subject{}
	}
	// In tables, chains, rules, sets, elements and objects alike, the first
	// attribute is the name of the table.
	var in string
	c := ruleset.Chain{}
	err := eachAttr([]netlink.Message{m}, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_TABLE_NAME:
			in = ad.String()
		case unix.NFTA_CHAIN_HOOK:
			if m.Header.Type&kind == unix.NFT_MSG_NEWCHAIN {
				ad.Nested(func(hook *netlink.AttributeDecoder) error {
					c.Hook, c.Priority = decodeHook(hook)
					return nil
				})
			}
		}
	})
	if err != nil {
		return Subject{Ours: true, Rival: true}
	}
	ours := ruleset.IsOurs(nftables.TableFamily(m.Data[0]), in)
	return Subject{
		Ours:  ours,
		Rival: !ours && c.Hook == *nftables.ChainHookPrerouting && c.Priority == ruleset.Priority,
	}
}
