package redirect_test

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
)

// elsewhere is where rivals lead pods: not to NMI. An answer from there means
// that the rival has won.
var elsewhere = netip.MustParseAddrPort("10.0.0.1:80")

func TestRivalsBefore(t *testing.T) {
	for name, priority := range map[string]nftables.ChainPriority{
		"at dstnat":           -100,
		"at the same":         -110,
		"behind, at srcnat's": 100,
	} {
		t.Run(name, func(t *testing.T) {
			w := newRivalry(t)
			w.divert("rival", priority, elsewhere)
			w.hears(w.pod, metadata, "rival hears "+podIP) // so the rival is one
			w.ensured()
			w.serve(w.node, w.target, "nmi")
			w.hears(w.pod, metadata, "nmi hears "+podIP)
		})
	}
}

func TestRivalsAfter(t *testing.T) {
	w := newRivalry(t)
	w.ensured()
	w.serve(w.node, w.target, "nmi")
	w.divert("rival", -100, elsewhere)
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}

func TestRivalThatComesAtTheSamePriority(t *testing.T) {
	w := newRivalry(t)
	w.serve(w.node, w.target, "nmi")
	k := w.keep(w.datapath())
	w.divert("rival", -110, elsewhere)
	if got := k.repaired().Reason; got != "chain prerouting of table rival has the same priority" {
		t.Errorf("repaired for %q", got)
	}
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}

func TestRivalThatWinsLeadsNowhere(t *testing.T) {
	w := newRivalry(t)
	w.ensured()
	w.serve(w.node, w.target, "nmi")
	w.divert("rival", -150, elsewhere)
	w.silent(w.pod, metadata)
}

// newRivalry is a world in which elsewhere answers.
func newRivalry(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.rivalry()
	return w
}

func (w *world) rivalry() {
	w.Helper()
	w.serve(w.azure, elsewhere.String(), "rival")
}
