package redirect_test

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// generation returns the number of the last change of the node's ruleset.
func generation(w *world) uint32 {
	w.Helper()
	conn := must2(netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: w.node.FD()}))(w)
	defer conn.Close()
	answers := must2(conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, 4),
	}))(w)
	ad := must2(netlink.NewAttributeDecoder(answers[0].Data[4:]))(w)
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == unix.NFTA_GEN_ID {
			return ad.Uint32()
		}
	}
	w.Fatal("the kernel told no generation")
	return 0
}

// damage does something to the node's main table that its owner would not.
func (w *world) damage(do func(*nftables.Conn, *nftables.Table)) {
	w.Helper()
	w.damageTable(mainTable, do)
}

func (w *world) damageTable(name string, do func(*nftables.Conn, *nftables.Table)) {
	w.Helper()
	conn := must2(nftables.New(nftables.WithNetNSFd(w.node.FD())))(w)
	do(conn, &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	if err := conn.Flush(); err != nil {
		w.Error(err)
	}
}

// trackConnections has the node track connections, as any node with a CNI does.
func (w *world) trackConnections() {
	w.Helper()
	w.foreign("tracking", *nftables.ChainPriorityFilter, nftables.ChainTypeFilter, []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
	})
}

// divert leads TCP for the metadata address to another one, by a NAT chain of
// the given priority in a table of its own.
func (w *world) divert(table string, priority nftables.ChainPriority, to netip.AddrPort) {
	w.Helper()
	imds := netip.MustParseAddr("169.254.169.254")
	w.foreign(table, priority, nftables.ChainTypeNAT, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: imds.AsSlice()},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	})
}

func (w *world) foreign(name string, priority nftables.ChainPriority, kind nftables.ChainType, exprs []expr.Any) {
	w.Helper()
	w.damage(func(c *nftables.Conn, _ *nftables.Table) {
		table := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: kind, Hooknum: nftables.ChainHookPrerouting, Priority: &priority,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	})
}
