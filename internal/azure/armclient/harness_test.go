package armclient_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

const (
	tenant      = "0a0a0a0a-0000-4000-8000-00000000000a"
	group       = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/MC_nodes"
	setID       = group + "/providers/Microsoft.Compute/virtualMachineScaleSets/pool"
	vmID        = group + "/providers/Microsoft.Compute/virtualMachines/pool"
	identities  = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	appClientID = "aaaaaaaa-0000-4000-8000-000000000001"
	appObjectID = "aaaaaaaa-0000-4000-8000-000000000002"
	micClientID = "cccccccc-0000-4000-8000-000000000001"
	micObjectID = "cccccccc-0000-4000-8000-000000000002"
	secret      = "correct horse battery staple"
)

// eachKind runs a test for a scale set and for a virtual machine of the same name.
func eachKind(t *testing.T, test func(*testing.T, string)) {
	t.Helper()
	for name, id := range map[string]string{"scale set": setID, "virtual machine": vmID} {
		t.Run(name, func(t *testing.T) { test(t, id) })
	}
}

// document is a scale set and a virtual machine that each carry MIC's own
// identity and a system-assigned one, and two identities that they do not carry.
func document() model.Document {
	roles := []model.RoleAssignment{}
	for _, principal := range []string{appObjectID, micObjectID} {
		for _, role := range []string{"Virtual Machine Contributor", "Managed Identity Operator"} {
			roles = append(roles, model.RoleAssignment{Principal: principal, Role: role, Scope: group})
		}
	}
	return model.Document{
		Tenant:          tenant,
		Identities:      []model.Identity{{ID: identities + "mic", ClientID: micClientID, PrincipalID: micObjectID}, {ID: identities + "demo"}, {ID: identities + "demo-2"}},
		Applications:    []model.Application{{Name: "app", ClientID: appClientID, PrincipalID: appObjectID, Secrets: []model.Secret{secret}}},
		ScaleSets:       []model.ScaleSet{{ID: setID, SystemAssigned: &model.SystemAssigned{}, UserAssigned: []string{identities + "mic"}}},
		VirtualMachines: []model.VirtualMachine{{ID: vmID, SystemAssigned: &model.SystemAssigned{}, UserAssigned: []string{identities + "mic"}}},
		Nodes:           []model.Node{{Name: "node", ScaleSet: setID, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}},
		RoleAssignments: roles,
	}
}

// azure is a simulator on loopback and a transport that reaches nothing else.
type azure struct {
	*azuresim.Simulator
	client *http.Client

	mu       sync.Mutex
	requests []string                  // "METHOD path", to ARM
	bodies   []string                  // of PATCH requests
	headers  []http.Header             // of requests to ARM
	before   func(*http.Request) error // may refuse a request
	ahead    atomic.Int64              // of the simulator's clock, in ns
}

func start(t *testing.T, config azuresim.Config) *azure {
	t.Helper()
	a := &azure{}
	config.SigningKey = simtest.SigningKey(t)
	config.Clock = func() time.Time { return time.Now().Add(time.Duration(a.ahead.Load())) }
	sim, err := azuresim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	listeners := azuresim.Listeners{HTTPS: listen(t), IMDS: listen(t), Control: listen(t)}
	https, imds := listeners.HTTPS.Addr().String(), listeners.IMDS.Addr().String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- sim.Run(ctx, listeners) }()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: sim.Pool(), MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var dialer net.Dialer
			switch _, port, err := net.SplitHostPort(address); {
			case err != nil:
				return nil, err
			case address == "169.254.169.254:80":
				return dialer.DialContext(ctx, network, imds)
			case port == "443":
				return dialer.DialContext(ctx, network, https)
			}
			return nil, fmt.Errorf("a test may not dial %s", address)
		},
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		for _, e := range sim.Journal.Unexpected() {
			t.Errorf("unexpected: %s", e)
		}
	})
	a.Simulator, a.client = sim, &http.Client{Transport: transport}
	return a
}

// update changes a resource and follows the operation to its end. In the place
// of waiting it moves the simulator's clock.
func (a *azure) update(t *testing.T, client *armclient.Client, target compute.Ref, etag string, patch *compute.Patch) (compute.Identities, error) {
	t.Helper()
	operation, err := client.Begin(t.Context(), target, etag, patch)
	for range 100 {
		if err != nil {
			return compute.Identities{}, err
		}
		if operation.ResumeToken == "" {
			if operation.Shown == nil {
				t.Fatalf("%+v shows nothing", operation)
			}
			return *operation.Shown, nil
		}
		a.ahead.Add(int64(max(operation.After, time.Second)))
		operation, err = client.Poll(t.Context(), target, armclient.Running{ResumeToken: operation.ResumeToken, Started: time.Now(), Add: patch.Add})
	}
	t.Fatal("the operation does not end")
	return compute.Identities{}, nil
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

// Do notes what is sent to ARM, and sends it.
func (a *azure) Do(r *http.Request) (*http.Response, error) {
	if a.before != nil {
		if err := a.before(r); err != nil {
			return nil, err
		}
	}
	if r.URL.Host == "management.azure.com" {
		a.mu.Lock()
		a.requests = append(a.requests, r.Method+" "+r.URL.Path)
		a.headers = append(a.headers, r.Header.Clone())
		if r.Method == http.MethodPatch {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			a.bodies = append(a.bodies, string(body))
			r.Body = io.NopCloser(strings.NewReader(string(body)))
		}
		a.mu.Unlock()
	}
	return a.client.Do(r)
}

func (a *azure) sent(method string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, request := range a.requests {
		if strings.HasPrefix(request, method+" ") && strings.Contains(strings.ToLower(request), "/providers/microsoft.compute/virtualmachine") {
			n++
		}
	}
	return n
}

// arm is a client of the simulator as a service principal.
func (a *azure) arm(t *testing.T) *armclient.Client {
	t.Helper()
	return newClient(t, armclient.Config{Cloud: "azurepubliccloud", TenantID: tenant, ClientID: appClientID, ClientSecret: secret}, armclient.Options{Transport: a})
}

// unlimited are limits that no test reaches.
func unlimited() throttle.Limits {
	l := throttle.Limit{PerMinute: 1e6, Burst: 1e7}
	return throttle.Limits{ResourceUpdates: l, ResourceReads: l, SubscriptionUpdates: l, SubscriptionReads: l, PrincipalUpdates: l, PrincipalReads: l, Refill: time.Second}
}

func newClient(t *testing.T, config armclient.Config, options armclient.Options) *armclient.Client {
	t.Helper()
	options.Version, options.UserAgent = "v1", "custom/2"
	options.RetryDelay = time.Millisecond
	if options.Limits == (throttle.Limits{}) {
		options.Limits = unlimited()
	}
	client, err := armclient.New(config, options)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func ref(t *testing.T, id string) compute.Ref {
	t.Helper()
	out, err := compute.ParseRef(id)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func user(t *testing.T, name string) armid.ID {
	t.Helper()
	out, err := armid.ParseUserAssigned(identities + name)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wire is a server that answers every request of ARM's with one document, for
// what the simulator does not do. A token is never asked for: the credential is
// served by the same transport.
type wire struct {
	status int
	header http.Header
	body   string
}

func (w *wire) Do(r *http.Request) (*http.Response, error) {
	answer := httptest.NewRecorder()
	switch {
	case strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token"):
		answer.Header().Set("Content-Type", "application/json")
		_, _ = answer.WriteString(`{"token_type":"Bearer","expires_in":3600,"access_token":"x"}`)
	case r.URL.Host == "management.azure.com":
		maps.Copy(answer.Header(), w.header)
		answer.WriteHeader(w.status)
		_, _ = answer.WriteString(w.body)
	case strings.Contains(r.URL.Path, "openid-configuration"), strings.Contains(r.URL.Path, "discovery/instance"):
		answer.Header().Set("Content-Type", "application/json")
		base := "https://login.microsoftonline.com/" + tenant
		_, _ = fmt.Fprintf(answer, `{"tenant_discovery_endpoint":%q,"issuer":%q,"authorization_endpoint":%q,"token_endpoint":%q,"metadata":[]}`,
			base+"/v2.0/.well-known/openid-configuration", base+"/v2.0", base+"/oauth2/v2.0/authorize", base+"/oauth2/v2.0/token")
	default:
		return nil, errors.New("nothing is served at " + r.URL.String())
	}
	response := answer.Result()
	response.Request = r
	return response, nil
}

func (w *wire) arm(t *testing.T) *armclient.Client {
	t.Helper()
	return newClient(t, armclient.Config{Cloud: "AzureCloud", TenantID: tenant, ClientID: appClientID, ClientSecret: secret}, armclient.Options{Transport: w})
}
