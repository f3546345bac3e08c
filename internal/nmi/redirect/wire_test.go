package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	nl "github.com/vishvananda/netlink"
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
	nothing, ours, rival, anything := subject{}, subject{ours: true}, subject{rival: true}, subject{ours: true, rival: true}
	for name, test := range map[string]struct {
		message netlink.Message
		want    subject
	}{
		"our table goes":                 {announce(t, unix.NFT_MSG_DELTABLE, ip, mainTable), ours},
		"our other table goes":           {announce(t, unix.NFT_MSG_DELTABLE, ip, fenceTable), ours},
		"our rule goes":                  {announce(t, unix.NFT_MSG_DELRULE, ip, mainTable), ours},
		"our chain comes":                {announce(t, unix.NFT_MSG_NEWCHAIN, ip, mainTable, hookAttr(t, 0, -110)), ours},
		"a set in our table":             {announce(t, unix.NFT_MSG_NEWSET, ip, mainTable), ours},
		"another table":                  {announce(t, unix.NFT_MSG_DELTABLE, ip, "other"), nothing},
		"our name in another family":     {announce(t, unix.NFT_MSG_DELTABLE, ip6, mainTable), nothing},
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
			if got := describe(test.message); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestRival(t *testing.T) {
	chainOf := func(family nftables.TableFamily, table string, priority nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{
			Name: "c", Table: &nftables.Table{Name: table, Family: family}, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: &priority,
		}
	}
	with := func(c *nftables.Chain, f func(*nftables.Chain)) *nftables.Chain { f(c); return c }
	const ip, inet = nftables.TableFamilyIPv4, nftables.TableFamilyINet
	for name, test := range map[string]struct {
		chain *nftables.Chain
		rival bool
	}{
		"ours":                    {chainOf(ip, mainTable, -110), false},
		"our other table's":       {chainOf(ip, fenceTable, -110), false},
		"our name, both families": {chainOf(inet, mainTable, -110), true},
		"at our priority":         {chainOf(ip, "other", -110), true},
		"behind":                  {chainOf(ip, "other", -100), false},
		"no NAT":                  {with(chainOf(ip, "other", -110), func(c *nftables.Chain) { c.Type = nftables.ChainTypeFilter }), false},
		"at another hook":         {with(chainOf(ip, "other", -110), func(c *nftables.Chain) { c.Hooknum = nftables.ChainHookOutput }), false},
		"no base chain":           {&nftables.Chain{Name: "c", Table: &nftables.Table{Name: "other"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := rival([]*nftables.Chain{test.chain}); (got != "") != test.rival {
				t.Errorf("got %q", got)
			}
		})
	}
}

// linkMessage is what the kernel tells of a link: index 5, with a setting.
func linkMessage(flags uint32, conf []uint32) []byte {
	data := make([]byte, sizeofIfInfomsg)
	binary.NativeEndian.PutUint32(data[4:], 5)
	binary.NativeEndian.PutUint32(data[8:], flags)
	data = slices.Concat(data, encode(unix.IFLA_IFNAME, []byte("eth0\x00")))
	if conf == nil {
		return data
	}
	var b []byte
	for _, v := range conf {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return slices.Concat(data, nested(unix.IFLA_AF_SPEC, nested(unix.AF_INET, encode(unix.IFLA_INET_CONF, b))))
}

func TestDecodeLink(t *testing.T) {
	on := make([]uint32, 32)
	on[25] = 1
	others := make([]uint32, 32)
	for i := range others {
		others[i] = 1
	}
	others[25] = 0
	for name, test := range map[string]struct {
		data []byte
		want link
	}{
		"on":                 {linkMessage(unix.IFF_UP, on), link{index: 5, name: "eth0", inet: true, routeLocalnet: true}},
		"all else is on":     {linkMessage(unix.IFF_UP, others), link{index: 5, name: "eth0", inet: true}},
		"lo":                 {linkMessage(unix.IFF_LOOPBACK, others), link{index: 5, name: "eth0", inet: true, loopback: true}},
		"no IPv4":            {linkMessage(unix.IFF_UP, nil), link{index: 5, name: "eth0"}},
		"an old kernel's":    {linkMessage(unix.IFF_UP, on[:25]), link{index: 5, name: "eth0"}},
		"exactly that many":  {linkMessage(unix.IFF_UP, on[:26]), link{index: 5, name: "eth0", inet: true, routeLocalnet: true}},
		"no settings at all": {linkMessage(unix.IFF_UP, []uint32{}), link{index: 5, name: "eth0"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeLink(test.data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(link{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := decodeLink(make([]byte, 15)); err == nil {
		t.Error("a message that is too short is read")
	}
}

func TestDiffering(t *testing.T) {
	off, on := link{name: "off", inet: true}, link{name: "on", inet: true, routeLocalnet: true}
	lo, other := link{name: "lo", inet: true, loopback: true}, link{name: "other"}
	all := []link{off, on, lo, other}
	for want, got := range map[string][]link{"off": differing(all, true), "on": differing(all, false)} {
		if len(got) != 1 || got[0].name != want {
			t.Errorf("got %+v, want %s", got, want)
		}
	}
}

func FuzzDecodeLink(f *testing.F) {
	f.Add(linkMessage(0, make([]uint32, 33)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := decodeLink(data); err == nil && l.routeLocalnet && !l.inet {
			t.Errorf("%+v", l)
		}
	})
}

func TestAstray(t *testing.T) {
	config, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	const imds, nmi = "169.254.169.254", "127.0.0.1"
	tuple := func(protocol uint8, to string, port uint16) nl.IPTuple {
		return nl.IPTuple{Protocol: protocol, DstIP: net.ParseIP(to), DstPort: port, SrcIP: net.ParseIP("10.244.0.2"), SrcPort: 40000}
	}
	answered := func(from string, port uint16) nl.IPTuple {
		return nl.IPTuple{Protocol: tcp, SrcIP: net.ParseIP(from), SrcPort: port, DstIP: net.ParseIP("10.244.0.2"), DstPort: 40000}
	}
	for name, test := range map[string]struct {
		forward, reverse nl.IPTuple
		want             bool
	}{
		"to the service itself":       {tuple(tcp, imds, 80), answered(imds, 80), true},
		"to a rival":                  {tuple(tcp, imds, 80), answered("10.0.0.1", 80), true},
		"to another port of NMI's":    {tuple(tcp, imds, 80), answered(nmi, 80), true},
		"to NMI":                      {tuple(tcp, imds, 80), answered(nmi, 2579), false},
		"another protocol":            {tuple(udp, imds, 80), answered(imds, 80), false},
		"another port":                {tuple(tcp, imds, 443), answered(imds, 443), false},
		"another address":             {tuple(tcp, "10.0.0.1", 80), answered("10.0.0.1", 80), false},
		"addresses that are not told": {nl.IPTuple{Protocol: tcp, DstPort: 80}, nl.IPTuple{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := astray(config).MatchConntrackFlow(&nl.ConntrackFlow{Forward: test.forward, Reverse: test.reverse}); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.EPERM: ErrCapability, unix.EACCES: ErrCapability,
		unix.EPROTONOSUPPORT: ErrKernel, unix.EOPNOTSUPP: ErrKernel, unix.EINVAL: ErrKernel, unix.ENOENT: ErrKernel,
	} {
		err := explain(fmt.Errorf("asking: %w", errno))
		if !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v, want both it and: %v", errno, err, want)
		}
	}
	if err := explain(unix.ENOBUFS); err != unix.ENOBUFS { //nolint:errorlint // the same error, not one like it
		t.Errorf("ENOBUFS becomes %v", err)
	}
}
