package redirect_test

import (
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// BenchmarkEnsureUnchanged is what every interval and every event costs a node
// on which nothing is wrong.
func BenchmarkEnsureUnchanged(b *testing.B) {
	node := netns.ForTest(b, "node")
	d := must2(redirect.New(redirect.Config{NetNS: node.FD()}))(b)
	must2(d.Ensure(b.Context()))(b)
	for b.Loop() {
		if change, err := d.Ensure(b.Context()); err != nil || !change.IsZero() {
			b.Fatalf("got %+v, %v", change, err)
		}
	}
}

// BenchmarkRepair is the same with everything to be done again.
func BenchmarkRepair(b *testing.B) {
	node := netns.ForTest(b, "node")
	d := must2(redirect.New(redirect.Config{NetNS: node.FD()}))(b)
	for b.Loop() {
		if change, err := d.Ensure(b.Context()); err != nil || !change.Rules {
			b.Fatalf("got %+v, %v", change, err)
		}
		if _, err := d.Delete(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
