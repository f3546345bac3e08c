package link

import (
	"net/netip"
	"testing"
)

// BenchmarkPath is what each request costs: reading what has been announced, and
// an answer from what is known.
func BenchmarkPath(b *testing.B) {
	table, err := Open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	address := netip.MustParseAddr("127.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := table.Path(address); err != nil {
			b.Fatal(err)
		}
	}
}
