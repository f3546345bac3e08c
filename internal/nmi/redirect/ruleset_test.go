package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
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
	case *expr.Verdict:
		return map[expr.VerdictKind]string{expr.VerdictDrop: "drop"}[e.Kind]
	}
	return fmt.Sprintf("%T", e)
}

func TestDesired(t *testing.T) {
	const (
		redirect = "chain redirect nat hook 0 priority -110 policy 1"
		fence    = "chain fence filter hook 2 priority 0 policy 1"
		answer   = "chain answer filter hook 3 priority 0 policy 1"
		fenced   = " no pod reaches the metadata address: @nh,16,4 == 0a090807 drop"
		rerouted = " no pod is sent elsewhere for metadata: meta l4proto == 06 ct 9 dir 0 == 0a090807 ct 12 dir 0 == 1f90 drop"
	)
	uid := fmt.Sprintf("%x", binary.NativeEndian.AppendUint32(nil, 1234))
	lo := "6c6f" + strings.Repeat("0", 28)
	for name, test := range map[string]struct {
		target string
		want   []string
	}{
		"to loopback": {"127.1.2.3:258", []string{
			"chain guard filter hook 0 priority -300 policy 1",
			" no packet from outside is for loopback: meta iifname != " + lo + " @nh,16,1 == 7f drop",
			" no packet from outside is from loopback: meta iifname != " + lo + " @nh,12,1 == 7f drop",
			redirect,
			" pods ask NMI for metadata: meta l4proto == 06 @nh,16,4 == 0a090807 @th,2,2 == 1f90 reg1=7f010203 reg2=0102 nat type 1 to reg1:reg2",
			fence, fenced, rerouted, answer,
			" only NMI answers from its address: meta l4proto == 06 @nh,12,4 == 7f010203 @th,0,2 == 0102 meta skuid != " + uid + " drop",
		}},
		"to an address of the node": {"192.0.2.1:2579", []string{
			redirect,
			" pods ask NMI for metadata: meta l4proto == 06 @nh,16,4 == 0a090807 @th,2,2 == 1f90 reg1=c0000201 reg2=0a13 nat type 1 to reg1:reg2",
			fence, fenced, rerouted, answer,
			" only NMI answers from its address: meta l4proto == 06 @nh,12,4 == c0000201 @th,0,2 == 0a13 meta skuid != " + uid + " drop",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			rules := desired(Config{
				Metadata: netip.MustParseAddrPort("10.9.8.7:8080"), Target: netip.MustParseAddrPort(test.target), UID: 1234,
			})
			var got []string
			for _, c := range rules.chains {
				got = append(got, fmt.Sprintf("chain %s %s hook %d priority %d policy %d", c.name, c.kind, c.hook, c.priority, c.policy))
				for _, r := range c.rules {
					line := " " + r.comment + ":"
					for _, e := range r.exprs {
						line += " " + sentence(e)
					}
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if int(rules.uses) != len(rules.chains) || rules.flags != 0 {
				t.Errorf("uses %d and flags %d for %d chains", rules.uses, rules.flags, len(rules.chains))
			}
		})
	}
}

func TestCompareFindsNothingInTheDesired(t *testing.T) {
	config, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	found := desired(config)
	if damage := compare(desired(config), &found); damage != nil {
		t.Error(damage)
	}
	config.UID++
	if damage := compare(desired(config), &found); damage == nil || damage.Chain != answerChain {
		t.Errorf("another user: got %v, want damage to %s", damage, answerChain)
	}
}

func TestCommentsAreReadAsWritten(t *testing.T) {
	config, _ := Config{}.withDefaults()
	for _, c := range desired(config).chains {
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
