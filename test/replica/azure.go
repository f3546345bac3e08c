package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/pki"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

const (
	subscription = "/subscriptions/11111111-2222-4333-8444-555555555555"
	tenant       = "00000000-aaaa-4bbb-8ccc-dddddddddddd"
	appClientID  = "aaaaaaaa-0000-4000-8000-000000000001"
	appObjectID  = "aaaaaaaa-0000-4000-8000-000000000002"
	appSecret    = "a secret of the simulated tenant only"
)

// ScaleSetID is the resource ID of a scale set.
func ScaleSetID(n int) string {
	return fmt.Sprintf("%s/resourceGroups/MC_bench/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool%d-vmss", subscription, n)
}

// MachineID is the resource ID of a virtual machine.
func MachineID(n int) string {
	return fmt.Sprintf("%s/resourceGroups/MC_bench/providers/Microsoft.Compute/virtualMachines/aks-vm%d", subscription, n)
}

// ManagedID is the resource ID of a managed identity.
func ManagedID(n int) string {
	return fmt.Sprintf("%s/resourceGroups/bench/providers/Microsoft.ManagedIdentity/userAssignedIdentities/bench-identity-%04d", subscription, n)
}

// ClientID is the managed identity's.
func ClientID(n int) string { return fmt.Sprintf("cccccccc-0000-4000-8000-%012d", n) }

// Azure is the simulated Azure of a scene. MIC reaches it through a proxy on
// loopback, by Azure's own host names.
type Azure struct {
	Sim *azuresim.Simulator
	// Control reaches the simulator as its users do.
	Control *control.Client

	dir    string
	proxy  string // its address
	cancel context.CancelFunc
	ran    chan error
}

// StartAzure serves an Azure with so many scale sets and managed identities.
func StartAzure(ctx context.Context, dir string, as settings.Settings) (*Azure, error) {
	authority, err := pki.New()
	if err != nil {
		return nil, err
	}
	sim, err := azuresim.New(azuresim.Config{Settings: as, JournalLimit: 200_000, Authority: authority, State: model.Document{
		Tenant:       tenant,
		Applications: []model.Application{{Name: "mic", ClientID: appClientID, PrincipalID: appObjectID, Secrets: []model.Secret{appSecret}}},
		RoleAssignments: []model.RoleAssignment{
			{Principal: appObjectID, Role: "Virtual Machine Contributor", Scope: subscription},
			{Principal: appObjectID, Role: "Managed Identity Operator", Scope: subscription},
		},
	}})
	if err != nil {
		return nil, err
	}
	a := &Azure{Sim: sim, dir: dir, ran: make(chan error, 2)}
	config := fmt.Sprintf(`{"cloud":"AzurePublicCloud","tenantId":%q,"aadClientId":%q,"aadClientSecret":%q}`, tenant, appClientID, appSecret)
	if err := errors.Join(os.WriteFile(a.cloudConfig(), []byte(config), 0o600), os.WriteFile(a.caFile(), authority.CertPEM(), 0o600)); err != nil {
		return nil, fmt.Errorf("writing MIC's configuration: %w", err)
	}
	return a, a.serve(ctx)
}

func (a *Azure) cloudConfig() string { return filepath.Join(a.dir, "azure.json") }
func (a *Azure) caFile() string      { return filepath.Join(a.dir, "azure-ca.crt") }

func (a *Azure) serve(ctx context.Context) error {
	var open net.ListenConfig
	https, errHTTPS := open.Listen(ctx, "tcp", "127.0.0.1:0")
	front, errFront := open.Listen(ctx, "tcp", "127.0.0.1:0")
	steer, errSteer := open.Listen(ctx, "tcp", "127.0.0.1:0")
	if err := errors.Join(errHTTPS, errFront, errSteer); err != nil {
		return fmt.Errorf("listening for Azure: %w", err)
	}
	ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	a.proxy = front.Addr().String()
	a.Control = control.New("http://"+steer.Addr().String(), &http.Client{Timeout: time.Minute})
	server := &http.Server{Handler: tunnel(https.Addr().String()), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { a.ran <- a.Sim.Run(ctx, azuresim.Listeners{HTTPS: https, Control: steer}) }()
	go func() {
		err := server.Serve(front)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		a.ran <- err
	}()
	return nil
}

// Close ends the simulator. A request that Azure does not offer is an error.
func (a *Azure) Close() error {
	a.cancel()
	err := errors.Join(<-a.ran, <-a.ran)
	for _, e := range a.Sim.Journal.Unexpected() {
		err = errors.Join(err, fmt.Errorf("azure does not offer %s", e))
	}
	return err
}

// tunnel is an HTTP proxy all of whose tunnels end at one address.
func tunnel(address string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only tunnels", http.StatusMethodNotAllowed)
			return
		}
		var dialer net.Dialer
		there, err := dialer.DialContext(r.Context(), "tcp", address)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		_, _ = io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() {
			_, _ = io.Copy(there, here) // the other direction says when it is over
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
	})
}

// Furnish adds scale sets and managed identities.
func (a *Azure) Furnish(scaleSets, identities int) error {
	var doc model.Document
	for i := range scaleSets {
		doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: ScaleSetID(i)})
	}
	for i := range identities {
		doc.Identities = append(doc.Identities, model.Identity{ID: ManagedID(i), ClientID: ClientID(i)})
	}
	if _, err := a.Sim.State.Add(doc); err != nil {
		return fmt.Errorf("furnishing Azure: %w", err)
	}
	return nil
}

// Patches returns how often each scale set was changed.
func (a *Azure) Patches() map[string]int {
	out := map[string]int{}
	for _, e := range a.Sim.Journal.Since(0) {
		if e.Surface == journal.ARM && e.Method == http.MethodPatch {
			out[strings.ToLower(e.Path)]++
		}
	}
	return out
}
