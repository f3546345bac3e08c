package netns

// TB is the part of testing.TB that [ForTest] needs. It is named here so that
// the demo, which uses this package too, does not link the testing package.
type TB interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
	Cleanup(f func())
}

// ForTest is [New] for a test: it ends the test if there is no namespace to be
// had, and closes the namespace after the test.
func ForTest(tb TB, name string) *NS {
	tb.Helper()
	n, err := New(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			tb.Errorf("closing network namespace %s: %v", name, err)
		}
	})
	return n
}
