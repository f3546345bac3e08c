package wire

import (
	"net/netip"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

func TestCommentsAreReadAsWritten(t *testing.T) {
	spec := ruleset.Spec{Metadata: netip.MustParseAddrPort("169.254.169.254:80"), Target: netip.MustParseAddrPort("127.0.0.1:2579")}
	for _, c := range ruleset.Desired(spec)[0].Chains { // the other holds no more
		for _, r := range c.Rules {
			if got := decodeComment(encodeComment(r.Comment)); got != r.Comment || len(r.Comment) > 120 {
				t.Errorf("%q is read as %q", r.Comment, got)
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
