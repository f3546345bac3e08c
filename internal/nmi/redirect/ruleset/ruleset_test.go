package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// sentence writes an expression down as a person would check it.
func sentence(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Meta:
		return "meta " + map[expr.MetaKey]string{
			expr.MetaKeyL4PROTO: "l4proto", expr.MetaKeyIIFNAME: "iifname", expr.MetaKeySKUID: "skuid",
		}[e.Key]
	case *expr.Payload:
		return fmt.Sprintf("@%s,%d,%d", map[expr.PayloadBase]string{
			expr.PayloadBaseNetworkHeader: "nh", expr.PayloadBaseTransportHeader: "th",
		}[e.Base], e.Offset, e.Len)
	case *expr.Ct:
		return fmt.Sprintf("ct %d dir %d", e.Key, e.Direction)
	case *expr.Cmp:
		return fmt.Sprintf("%s %x", map[expr.CmpOp]string{expr.CmpOpEq: "==", expr.CmpOpNeq: "!="}[e.Op], e.Data)
	case *expr.Immediate:
		return fmt.Sprintf("reg%d=%x", e.Register, e.Data)
	case *expr.NAT:
		return fmt.Sprintf("nat type %d to reg%d:reg%d", e.Type, e.RegAddrMin, e.RegProtoMin)
	case *expr.Reject:
		return map[uint32]string{unix.NFT_REJECT_TCP_RST: "reset"}[e.Type]
	case *expr.Verdict:
		return map[expr.VerdictKind]string{expr.VerdictDrop: "drop"}[e.Kind]
	}
	return fmt.Sprintf("%T", e)
}

func TestDesired(t *testing.T) {
	uid := fmt.Sprintf("%x", binary.NativeEndian.AppendUint32(nil, 1234))
	lo := "6c6f" + strings.Repeat("0", 28)
	drops := func(target string) []string {
		return []string{
			"chain fence filter hook 2 priority 0 policy 1",
			" a pod is refused while NMI is away: meta l4proto == 06 @nh,16,4 == 0a090807 @th,2,2 == 1f90 reset",
			" no pod reaches the metadata address: @nh,16,4 == 0a090807 drop",
			" no pod is sent elsewhere for metadata: meta l4proto == 06 ct 9 dir 0 == 0a090807 ct 12 dir 0 == 1f90 drop",
			"chain answer filter hook 3 priority 0 policy 1",
			" only NMI answers from its address: meta l4proto == 06 " + target + " meta skuid != " + uid + " drop",
		}
	}
	guard := []string{
		"chain guard filter hook 0 priority -300 policy 1",
		" no packet from outside is for loopback: meta iifname != " + lo + " @nh,16,1 == 7f drop",
		" no packet from outside is from loopback: meta iifname != " + lo + " @nh,12,1 == 7f drop",
	}
	own := []string{
		"chain guard filter hook 0 priority -300 policy 1",
		" nobody asks NMI past the redirect: meta iifname != " + lo + " meta l4proto == 06 @nh,16,4 == a9feff4f reset",
		" no packet from outside is for NMI's address: meta iifname != " + lo + " @nh,16,4 == a9feff4f drop",
		" no packet from outside is from NMI's address: meta iifname != " + lo + " @nh,12,4 == a9feff4f drop",
		" loopback stays closed: meta iifname != " + lo + " @nh,16,1 == 7f drop",
		" and nothing claims to be from there: meta iifname != " + lo + " @nh,12,1 == 7f drop",
	}
	redirect := func(registers string) []string {
		return []string{
			"chain redirect nat hook 0 priority -110 policy 1",
			" pods ask NMI for metadata: meta l4proto == 06 @nh,16,4 == 0a090807 @th,2,2 == 1f90 " + registers + " nat type 1 to reg1:reg2",
		}
	}
	main, fence, spare := []string{"table " + MainTable}, []string{"table " + FenceTable}, []string{"table " + SpareTable}
	loopback := append(drops("@nh,12,4 == 7f010203 @th,0,2 == 0102"), guard...)
	address := drops("@nh,12,4 == c0000201 @th,0,2 == 0a13")
	link := append(drops("@nh,12,4 == a9feff4f @th,0,2 == 0a13"), own...)
	for name, test := range map[string]struct {
		target string
		own    bool
		want   []string
	}{
		"to loopback":               {"127.1.2.3:258", false, slices.Concat(main, redirect("reg1=7f010203 reg2=0102"), loopback, fence, loopback, spare, loopback)},
		"to an address of the node": {"192.0.2.1:2579", false, slices.Concat(main, redirect("reg1=c0000201 reg2=0a13"), address, fence, address, spare, address)},
		"to a link of NMI's own":    {"169.254.255.79:2579", true, slices.Concat(main, redirect("reg1=a9feff4f reg2=0a13"), link, fence, link, spare, link)},
	} {
		t.Run(name, func(t *testing.T) {
			tables := Desired(Spec{
				Metadata: netip.MustParseAddrPort("10.9.8.7:8080"), Target: netip.MustParseAddrPort(test.target), UID: 1234, Own: test.own,
			})
			var got []string
			for _, t := range tables {
				got = append(got, lines(t)...)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			for _, table := range tables {
				if int(table.Uses) != len(table.Chains) || table.Flags != 0 {
					t.Errorf("uses %d and flags %d for %d chains", table.Uses, table.Flags, len(table.Chains))
				}
			}
		})
	}
}

// lines writes a table down.
func lines(t Table) []string {
	all := []string{"table " + t.Name}
	for _, c := range t.Chains {
		all = append(all, fmt.Sprintf("chain %s %s hook %d priority %d policy %d", c.Name, c.Kind, c.Hook, c.Priority, c.Policy))
		for _, r := range c.Rules {
			line := " " + r.Comment + ":"
			for _, e := range r.Exprs {
				line += " " + sentence(e)
			}
			all = append(all, line)
		}
	}
	return all
}

func TestCompareFindsNothingInTheDesired(t *testing.T) {
	spec := Spec{Metadata: netip.MustParseAddrPort("169.254.169.254:80"), Target: netip.MustParseAddrPort("127.0.0.1:2579")}
	found := Desired(spec)
	for i, want := range Desired(spec) {
		if damage := Compare(want, &found[i]); damage != nil {
			t.Error(damage)
		}
	}
	spec.UID++
	for i, want := range Desired(spec) {
		if damage := Compare(want, &found[i]); damage == nil || damage.Chain != AnswerChain || damage.Table != want.Name {
			t.Errorf("another user: got %v, want damage to %s of %s", damage, AnswerChain, want.Name)
		}
	}
}

// What tells of links that let packets through to loopback is in each table of
// that target, and in none of another.
func TestGuardsLoopback(t *testing.T) {
	for target, want := range map[string]bool{"127.0.0.1:2579": true, "10.0.0.4:2579": false, "169.254.255.79:2579": false} {
		spec := Spec{Metadata: netip.MustParseAddrPort("169.254.169.254:80"), Target: netip.MustParseAddrPort(target), Own: target == "169.254.255.79:2579"}
		for _, table := range Desired(spec) {
			if got := GuardsLoopback(&table); got != want {
				t.Errorf("%s, table %s: %t", target, table.Name, got)
			}
			for _, c := range table.Chains {
				if !slices.Contains(Chains(), c.Name) {
					t.Errorf("chain %s is not among all chains", c.Name)
				}
			}
		}
	}
	if GuardsLoopback(nil) {
		t.Error("no table guards")
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
		"ours":                    {chainOf(ip, MainTable, -110), false},
		"our other table's":       {chainOf(ip, FenceTable, -110), false},
		"our name, both families": {chainOf(inet, MainTable, -110), true},
		"at our priority":         {chainOf(ip, "other", -110), true},
		"behind":                  {chainOf(ip, "other", -100), false},
		"no NAT":                  {with(chainOf(ip, "other", -110), func(c *nftables.Chain) { c.Type = nftables.ChainTypeFilter }), false},
		"at another hook":         {with(chainOf(ip, "other", -110), func(c *nftables.Chain) { c.Hooknum = nftables.ChainHookOutput }), false},
		"no base chain":           {&nftables.Chain{Name: "c", Table: &nftables.Table{Name: "other"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Rival([]*nftables.Chain{test.chain}); (got != "") != test.rival {
				t.Errorf("got %q", got)
			}
		})
	}
}
