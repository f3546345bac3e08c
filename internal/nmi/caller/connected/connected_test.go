package connected_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/connected"
)

// pair returns both ends of a connection from an address of loopback.
func pair(t *testing.T, listener net.Listener, from string) (near, far net.Conn) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	far, err := dialer.DialContext(t.Context(), "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	if near, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	return near, far
}

func TestDrop(t *testing.T) {
	var listen net.ListenConfig
	inner, err := listen.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Close() })
	var set connected.Set
	listener := set.Listener(inner)
	one, oneFar := pair(t, listener, "127.0.0.2")
	_, twoFar := pair(t, listener, "127.0.0.2")
	other, otherFar := pair(t, listener, "127.0.0.3")
	address := netip.MustParseAddr("127.0.0.2")

	if _, err := one.Write([]byte("a secret")); err != nil {
		t.Fatal(err)
	}
	if n := set.Drop(address); n != 2 {
		t.Errorf("dropped %d connections, want 2", n)
	}
	for _, far := range []net.Conn{oneFar, twoFar} {
		// What had arrived may be read; then the connection is reset, not ended.
		if _, err := io.ReadAll(far); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	}
	if _, err := one.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the near end: %v", err)
	}
	if _, err := otherFar.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Read(make([]byte, 1)); err != nil {
		t.Errorf("another's connection: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	for _, gone := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} {
		if n := set.Drop(netip.MustParseAddr(gone)); n != 0 {
			t.Errorf("dropped %d connections of %s, want none", n, gone)
		}
	}
}
