package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	redirect := func(registers string) []string {
		return []string{
			"chain redirect nat hook 0 priority -110 policy 1",
			" pods ask NMI for metadata: meta l4proto == 06 @nh,16,4 == 0a090807 @th,2,2 == 1f90 " + registers + " nat type 1 to reg1:reg2",
		}
	}
	main, fence, spare := []string{"table " + mainTable}, []string{"table " + fenceTable}, []string{"table " + spareTable}
	loopback := append(drops("@nh,12,4 == 7f010203 @th,0,2 == 0102"), guard...)
	address := drops("@nh,12,4 == c0000201 @th,0,2 == 0a13")
	for name, test := range map[string]struct {
		target string
		want   []string
	}{
		"to loopback":               {"127.1.2.3:258", slices.Concat(main, redirect("reg1=7f010203 reg2=0102"), loopback, fence, loopback, spare, loopback)},
		"to an address of the node": {"192.0.2.1:2579", slices.Concat(main, redirect("reg1=c0000201 reg2=0a13"), address, fence, address, spare, address)},
	} {
		t.Run(name, func(t *testing.T) {
			tables := desired(Config{
				Metadata: netip.MustParseAddrPort("10.9.8.7:8080"), Target: netip.MustParseAddrPort(test.target), UID: 1234,
			})
			var got []string
			for _, t := range tables {
				got = append(got, lines(t)...)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			for _, table := range tables {
				if int(table.uses) != len(table.chains) || table.flags != 0 {
					t.Errorf("uses %d and flags %d for %d chains", table.uses, table.flags, len(table.chains))
				}
			}
		})
	}
}

// lines writes a table down.
func lines(t table) []string {
	all := []string{"table " + t.name}
	for _, c := range t.chains {
		all = append(all, fmt.Sprintf("chain %s %s hook %d priority %d policy %d", c.name, c.kind, c.hook, c.priority, c.policy))
		for _, r := range c.rules {
			line := " " + r.comment + ":"
			for _, e := range r.exprs {
				line += " " + sentence(e)
			}
			all = append(all, line)
		}
	}
	return all
}

func TestCompareFindsNothingInTheDesired(t *testing.T) {
	config, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	found := desired(config)
	for i, want := range desired(config) {
		if damage := compare(want, &found[i]); damage != nil {
			t.Error(damage)
		}
	}
	config.UID++
	for i, want := range desired(config) {
		if damage := compare(want, &found[i]); damage == nil || damage.Chain != answerChain || damage.Table != want.name {
			t.Errorf("another user: got %v, want damage to %s of %s", damage, answerChain, want.name)
		}
	}
}

func TestCommentsAreReadAsWritten(t *testing.T) {
	config, _ := Config{}.withDefaults()
	for _, c := range desired(config)[0].chains { // the other holds no more
		for _, r := range c.rules {
			if got := decodeComment(encodeComment(r.comment)); got != r.comment || len(r.comment) > 120 {
				t.Errorf("%q is read as %q", r.comment, got)
			}
		}
	}
}

func FuzzDecodeComment(f *testing.F) {
	f.Add([]byte{0, 2, 'x', 0})
	f.Add([]byte{0, 200, 'x', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		comment := decodeComment(data)
		if len(comment) < 250 && string(encodeComment(comment)) != string(data) && comment != string(data) {
			t.Errorf("%x is read as %q", data, comment)
		}
	})
}
