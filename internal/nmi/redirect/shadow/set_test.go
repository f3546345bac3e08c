package shadow

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// FuzzSet: whatever others have put into their sets, looking at it ends, and a map
// of verdicts without the address leads nowhere.
func FuzzSet(f *testing.F) {
	f.Fuzz(func(t *testing.T, key, keyEnd, value []byte, intervals, end, invert bool) {
		s := set{intervals: intervals, elements: []nftables.SetElement{{Key: key, KeyEnd: keyEnd, Val: value, IntervalEnd: end}}}
		exprs := []expr.Any{
			&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4, DestRegister: 1},
			&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: "s", Invert: invert},
		}
		sets := func(string) set { return s }
		got := judge(exprs, netip.MustParseAddrPort("169.254.169.254:80"), sets)
		if exact := len(keyEnd) == 0 && !intervals && len(key) == 4; exact && !invert && string(key) != "\xa9\xfe\xa9\xfe" && (got.does != "" || got.next != nil) {
			t.Errorf("%v: got %+v, want nothing", key, got)
		}
	})
}
