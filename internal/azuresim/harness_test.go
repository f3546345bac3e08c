package azuresim_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

const (
	tenant       = "0a0a0a0a-0000-4000-8000-00000000000a"
	subscription = "11111111-2222-3333-4444-555555555555"
	nodeGroup    = "/subscriptions/" + subscription + "/resourceGroups/MC_nodes"
	userGroup    = "/subscriptions/" + subscription + "/resourceGroups/Apps"
	scaleSetName = "aks-pool1-vmss"
	scaleSetID   = nodeGroup + "/providers/Microsoft.Compute/virtualMachineScaleSets/" + scaleSetName
	demoID       = userGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"
	otherID      = userGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/other"
	foreignID    = "/subscriptions/" + subscription + "/resourceGroups/foreign/providers/Microsoft.ManagedIdentity/userAssignedIdentities/foreign"
	vaultID      = userGroup + "/providers/Microsoft.KeyVault/vaults/demo-vault"
	micClientID  = "aaaaaaaa-0000-4000-8000-000000000001"
	micObjectID  = "aaaaaaaa-0000-4000-8000-000000000002"
	demoClientID = "bbbbbbbb-0000-4000-8000-000000000001"
	demoObjectID = "bbbbbbbb-0000-4000-8000-000000000002"
	secret       = model.Secret("correct horse battery staple")
)

// document is a small Azure: an application that may write the scale set and
// assign what is in Apps, two identities there, one that it may not assign, one
// scale set with two nodes, a vault that Demo may read.
func document() model.Document {
	return model.Document{
		Tenant: tenant,
		Identities: []model.Identity{
			{ID: demoID, ClientID: demoClientID, PrincipalID: demoObjectID}, {ID: otherID}, {ID: foreignID},
		},
		Applications: []model.Application{{Name: "mic", ClientID: micClientID, PrincipalID: micObjectID, Secrets: []model.Secret{secret}}},
		ScaleSets:    []model.ScaleSet{{ID: scaleSetID, Location: "westeurope"}},
		Nodes: []model.Node{
			{Name: "node-0", ScaleSet: scaleSetID, Instance: 0, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		},
		RoleAssignments: []model.RoleAssignment{
			{Principal: micObjectID, Role: "Virtual Machine Contributor", Scope: nodeGroup},
			{Principal: micObjectID, Role: "Managed Identity Operator", Scope: userGroup},
			{Principal: demoObjectID, Role: "Key Vault Secrets User", Scope: vaultID},
		},
		Vaults: []model.Vault{{ID: vaultID, Secrets: []model.VaultSecret{{Name: "greeting", Value: "hello"}}}},
	}
}

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// azure is a simulator that runs on loopback listeners.
type azure struct {
	*azuresim.Simulator
	https, imds, control string // addresses
	clock                *clock // nil: the real one
	expected             bool   // unexpected entries do not fail the test
	stop                 func(*testing.T)
}

// start runs a simulator for the test, and fails the test at its end if the
// journal holds anything unexpected.
func start(t *testing.T, config azuresim.Config) *azure {
	t.Helper()
	sim, err := azuresim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	listeners := azuresim.Listeners{HTTPS: listen(t), IMDS: listen(t), Control: listen(t)}
	a := &azure{
		Simulator: sim, https: listeners.HTTPS.Addr().String(), imds: listeners.IMDS.Addr().String(), control: listeners.Control.Addr().String(),
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() {
		defer close(ran)
		ran <- sim.Run(ctx, listeners)
	}()
	a.stop = func(t *testing.T) {
		t.Helper()
		cancel()
		if err, ok := <-ran; ok && err != nil {
			t.Errorf("running the simulator: %v", err)
		}
	}
	t.Cleanup(func() {
		a.stop(t)
		for _, e := range sim.Journal.Unexpected() {
			if !a.expected {
				t.Errorf("unexpected: %s", e)
			}
		}
	})
	return a
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// client calls the simulator and nothing else: whatever name or address is
// dialled, the connection goes to a listener of this test, or fails.
func (a *azure) client(t *testing.T) *http.Client {
	t.Helper()
	return a.clientFrom(t, "127.0.0.1")
}

// clientFrom is a client whose connections come from a loopback address.
func (a *azure) clientFrom(t *testing.T, source string) *http.Client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: a.Pool(), MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			switch {
			case err != nil:
				return nil, err
			case address == "169.254.169.254:80":
				return dialer.DialContext(ctx, network, a.imds)
			case port == "443":
				return dialer.DialContext(ctx, network, a.https)
			}
			return nil, fmt.Errorf("a test may not dial %s", address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (a *azure) clientOptions(t *testing.T) azcore.ClientOptions {
	t.Helper()
	return azcore.ClientOptions{Transport: a.client(t), Retry: policy.RetryOptions{MaxRetries: 1, RetryDelay: time.Millisecond}}
}

func (a *azure) controlClient() *control.Client { return control.New("http://"+a.control, nil) }

// errorCode returns the code of the SDK's error for an answer of ARM or Key Vault.
func errorCode(t *testing.T, err error, status int) string {
	t.Helper()
	var response *azcore.ResponseError
	if !errors.As(err, &response) {
		t.Fatalf("got %v, want a ResponseError", err)
	}
	if response.StatusCode != status {
		t.Errorf("got status %d, want %d: %v", response.StatusCode, status, err)
	}
	return response.ErrorCode
}
