package wire

import (
	"encoding/binary"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// announce builds an announcement of nftables.
func announce(tb testing.TB, kind int, family byte, table string, attrs ...netlink.Attribute) netlink.Message {
	tb.Helper()
	data, err := netlink.MarshalAttributes(append([]netlink.Attribute{attr(unix.NFTA_TABLE_NAME, table)}, attrs...))
	if err != nil {
		tb.Fatal(err)
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)},
		Data:   append([]byte{family, 0, 0, 0}, data...),
	}
}

// hookAttr is the hook of a base chain.
func hookAttr(tb testing.TB, hook, priority int32) netlink.Attribute {
	tb.Helper()
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_HOOK_HOOKNUM, Data: binary.BigEndian.AppendUint32(nil, uint32(hook))},
		{Type: unix.NFTA_HOOK_PRIORITY, Data: binary.BigEndian.AppendUint32(nil, uint32(priority))},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return netlink.Attribute{Type: unix.NFTA_CHAIN_HOOK | unix.NLA_F_NESTED, Data: data}
}

func TestDescribe(t *testing.T) {
	const ip, ip6 = unix.NFPROTO_IPV4, unix.NFPROTO_IPV6
	nothing, ours, rival, anything := Subject{}, Subject{Ours: true}, Subject{Rival: true}, Subject{Ours: true, Rival: true}
	for name, test := range map[string]struct {
		message netlink.Message
		want    Subject
	}{
		"our table goes":                 {announce(t, unix.NFT_MSG_DELTABLE, ip, ruleset.MainTable), ours},
		"our other table goes":           {announce(t, unix.NFT_MSG_DELTABLE, ip, ruleset.FenceTable), ours},
		"our rule goes":                  {announce(t, unix.NFT_MSG_DELRULE, ip, ruleset.MainTable), ours},
		"our chain comes":                {announce(t, unix.NFT_MSG_NEWCHAIN, ip, ruleset.MainTable, hookAttr(t, 0, -110)), ours},
		"a set in our table":             {announce(t, unix.NFT_MSG_NEWSET, ip, ruleset.MainTable), ours},
		"another table":                  {announce(t, unix.NFT_MSG_DELTABLE, ip, "other"), nothing},
		"our name in another family":     {announce(t, unix.NFT_MSG_DELTABLE, ip6, ruleset.MainTable), nothing},
		"a chain at our priority":        {announce(t, unix.NFT_MSG_NEWCHAIN, ip, "other", hookAttr(t, 0, -110)), rival},
		"one for both families":          {announce(t, unix.NFT_MSG_NEWCHAIN, unix.NFPROTO_INET, "other", hookAttr(t, 0, -110)), rival},
		"one that goes":                  {announce(t, unix.NFT_MSG_DELCHAIN, ip, "other", hookAttr(t, 0, -110)), nothing},
		"a chain at another priority":    {announce(t, unix.NFT_MSG_NEWCHAIN, ip, "other", hookAttr(t, 0, -100)), nothing},
		"a chain at another hook":        {announce(t, unix.NFT_MSG_NEWCHAIN, ip, "other", hookAttr(t, 3, -110)), nothing},
		"a chain without a hook":         {announce(t, unix.NFT_MSG_NEWCHAIN, ip, "other"), nothing},
		"the end of a transaction":       {announce(t, unix.NFT_MSG_NEWGEN, ip, ""), nothing},
		"announcements that were lost":   {netlink.Message{}, anything},
		"one that is cut off":            {netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES << 8}, Data: []byte{ip}}, anything},
		"one with a bad attribute":       {netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES << 8}, Data: []byte{ip, 0, 0, 0, 99, 0, 1, 0}}, anything},
		"something of another subsystem": {netlink.Message{Header: netlink.Header{Type: 1 << 8}}, anything},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Describe(test.message); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
