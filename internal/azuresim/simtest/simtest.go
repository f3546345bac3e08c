// Package simtest runs the simulator for a test: on loopback listeners, with
// HTTP clients that can reach nothing else.
//
// It is for tests of any package that talks to Azure. It must not decide what is
// in the simulated Azure: a document does.
package simtest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
)

// Sim is a simulator that runs until its test ends.
type Sim struct {
	*azuresim.Simulator
	// The addresses of the listeners, host:port.
	HTTPS, IMDS, Control string

	loopback *http.Client
	stop     func()
	ran      chan error
	expected bool
}

// signingKey is shared by all simulators of a test binary: making one is slow.
//
//nolint:gochecknoglobals // set once, and the same for all
var signingKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// SigningKey returns a key that all tests of a binary share.
func SigningKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := signingKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Start runs a simulator. When the test ends it is stopped, and every unexpected
// entry in its journal fails the test. Without a signing key in config it shares
// one with the other tests.
func Start(t *testing.T, config azuresim.Config) *Sim {
	t.Helper()
	if config.SigningKey == nil {
		config.SigningKey = SigningKey(t)
	}
	sim, err := azuresim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	l := azuresim.Listeners{HTTPS: Listen(t), IMDS: Listen(t), Control: Listen(t)}
	ctx, cancel := context.WithCancel(t.Context())
	s := &Sim{
		Simulator: sim, stop: cancel, ran: make(chan error, 1),
		HTTPS: l.HTTPS.Addr().String(), IMDS: l.IMDS.Addr().String(), Control: l.Control.Addr().String(),
	}
	go func() {
		defer close(s.ran)
		s.ran <- sim.Run(ctx, l)
	}()
	t.Cleanup(func() { s.end(t) })
	s.loopback = s.ClientFrom(t, netip.MustParseAddr("127.0.0.1"))
	return s
}

// Listen opens a loopback port of the kernel's choice.
func Listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (s *Sim) end(t *testing.T) {
	t.Helper()
	s.Stop(t)
	for _, e := range s.Journal.Unexpected() {
		if !s.expected {
			t.Errorf("unexpected: %s", e)
		}
	}
}

// Stop ends the simulator early and waits until it has ended.
func (s *Sim) Stop(t *testing.T) {
	t.Helper()
	s.stop()
	if err := <-s.ran; err != nil {
		t.Errorf("running the simulator: %v", err)
	}
}

// ExpectUnexpected says that this test asks what Azure does not know: unexpected
// entries do not fail it.
func (s *Sim) ExpectUnexpected() { s.expected = true }

// Client returns the test's client, whose connections come from 127.0.0.1. It is
// the Transport for clients of the Azure SDK.
func (s *Sim) Client() *http.Client { return s.loopback }

// ClientFrom returns a client whose connections come from a loopback address,
// which makes it a node or a pod for IMDS. Whatever name or address is dialled,
// the connection goes to a listener of this simulator, or fails: the metadata
// address to IMDS, port 443 to HTTPS.
func (s *Sim) ClientFrom(t *testing.T, source netip.Addr) *http.Client {
	t.Helper()
	if !source.IsLoopback() {
		t.Fatalf("%s is not a loopback address", source)
	}
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.Pool(), MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			target, err := s.target(address)
			if err != nil {
				return nil, err
			}
			return dialer.DialContext(ctx, network, target)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (s *Sim) target(address string) (string, error) {
	_, port, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		return "", fmt.Errorf("dialling %q: %w", address, err)
	case address == "169.254.169.254:80":
		return s.IMDS, nil
	case port == "443":
		return s.HTTPS, nil
	}
	return "", fmt.Errorf("dialling %s: a client of the simulator reaches nothing else", address)
}

// ControlClient returns a client of the control API.
func (s *Sim) ControlClient() *control.Client { return control.New("http://"+s.Control, nil) }
