package redirect_test

import (
	"testing"
)

func TestPodReachesNMIAndNodeReachesTheService(t *testing.T) {
	w := newWorld(t)
	w.hears(w.pod, metadata, "azure hears "+podIP) // so the world is sound
	if w.leaked() == 0 {
		t.Fatal("the counter does not see what reaches azure")
	}
	w = newWorld(t)
	w.ensured()
	w.refused(w.pod, metadata)
	w.noLeaks()
	nmi := w.serve(w.node, target, "nmi")
	w.hears(w.pod, metadata, "nmi hears "+podIP)
	w.noLeaks()
	nmi.Close()
	w.refused(w.pod, metadata)
	w.noLeaks()
	w.hears(w.node, metadata, "azure hears 10.0.0.4")
}
