package nmi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

const (
	homeTenant  = "aaaaaaaa-0000-4000-8000-00000000000a"
	otherTenant = "aaaaaaaa-0000-4000-8000-00000000000b"
	appID       = "dddddddd-0000-4000-8000-000000000001"
	appSecret   = "s3cr3t~Of.The-Application"
	attacker    = "login.attacker.example"
)

// clouds are two tenants of the simulated Entra, and an authority that belongs to
// an attacker: whatever name is dialled, the connection goes to one of them.
type clouds struct {
	home, other *azuresim.Simulator
	transport   http.RoundTripper

	mu     sync.Mutex // protects stolen
	stolen []string
}

func newClouds(t testing.TB, certificates ...string) *clouds {
	t.Helper()
	c := &clouds{home: tenantOf(t, homeTenant, certificates), other: tenantOf(t, otherTenant, certificates)}
	pool := x509.NewCertPool()
	entra := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/"+otherTenant+"/") {
			c.other.HTTPS().ServeHTTP(w, r)
			return
		}
		c.home.HTTPS().ServeHTTP(w, r)
	}))
	entra.TLS = c.home.TLSConfig()
	entra.StartTLS()
	t.Cleanup(entra.Close)
	evil := httptest.NewTLSServer(http.HandlerFunc(c.steal))
	t.Cleanup(evil.Close)
	pool.AddCert(evil.Certificate())
	if !pool.AppendCertsFromPEM(certPEM(c.home)) {
		t.Fatal("the simulator's authority cannot be read")
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS12}}
			if strings.HasPrefix(host, "login.microsoftonline.com") {
				return dialer.DialContext(ctx, network, entra.Listener.Addr().String())
			}
			dialer.Config.ServerName = "example.com" // as the test server's certificate has it
			return dialer.DialContext(ctx, network, evil.Listener.Addr().String())
		},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, evil.Listener.Addr().String())
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	c.transport = transport
	return c
}

// certPEM gets the simulator's authority as its users do.
func certPEM(sim *azuresim.Simulator) []byte {
	out := httptest.NewRecorder()
	sim.Control().ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/ca", nil))
	return out.Body.Bytes()
}

func tenantOf(t testing.TB, tenant string, certificates []string) *azuresim.Simulator {
	t.Helper()
	sim, err := azuresim.New(azuresim.Config{State: model.Document{Tenant: tenant, Applications: []model.Application{
		{Name: "app", ClientID: appID, Secrets: []model.Secret{appSecret}, Certificates: certificates},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return sim
}

// steal is the attacker's authority: it would take anything, and gives tokens.
func (c *clouds) steal(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		body = []byte(err.Error())
	}
	c.mu.Lock()
	c.stolen = append(c.stolen, r.Method+" "+r.Host+r.URL.String()+" "+string(body))
	c.mu.Unlock()
	host := "https://" + r.Host
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodPost {
		_, _ = io.WriteString(w, `{"access_token":"e.e.e","token_type":"Bearer","expires_in":3600}`) // a client that left shows elsewhere
		return
	}
	_, _ = io.WriteString(w, `{"issuer":"`+host+`/x","authorization_endpoint":"`+host+`/x/a","token_endpoint":"`+host+`/x/token"}`) // see above
}

func (c *clouds) journalOfTheAttacker() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.stolen...)
}

// tokens counts the token requests that a tenant has answered with one.
func tokens(sim *azuresim.Simulator) int {
	n := 0
	for _, e := range sim.Journal.Since(0) {
		if strings.HasSuffix(e.Path, "/token") && e.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// startIn starts an agent whose way to Entra leads to the clouds.
func (c *cluster) startIn(w *clouds, upstream netip.AddrPort, flags ...string) *running {
	c.t.Helper()
	return startWith(c.t, func(o *Options) { o.rest, o.Upstream, o.entra = c.config, upstream.String(), w.transport }, flags...).ready()
}

// servicePrincipal is an identity whose Secret lies beside it.
func servicePrincipal(namespace, name string, kind v1.IdentityType) *v1.AzureIdentity {
	return &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.AzureIdentitySpec{
		Type: kind, ClientID: appID, TenantID: homeTenant, ClientPassword: &v1.SecretReference{Name: name, Namespace: namespace}}}
}

func secretFor(namespace, name string, pairs ...string) *corev1.Secret {
	out := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		out.Data[pairs[i]] = []byte(pairs[i+1])
	}
	return out
}

func bindingFor(id *v1.AzureIdentity, selector string) *v1.AzureIdentityBinding {
	return &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name},
		Spec: v1.AzureIdentityBindingSpec{AzureIdentity: id.Name, Selector: selector}}
}
