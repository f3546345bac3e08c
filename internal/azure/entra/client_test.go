package entra_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

const (
	tenant   = "11111111-0000-4000-8000-000000000001"
	clientID = "aaaaaaaa-0000-4000-8000-000000000001"
	secret   = "s3cr3t-of-the-application"
	public   = "login.microsoftonline.com"
)

func simulated(t *testing.T) *simtest.Sim {
	t.Helper()
	return simtest.Start(t, azuresim.Config{State: model.Document{
		Tenant: tenant, Applications: []model.Application{{Name: "app", ClientID: clientID, Secrets: []model.Secret{secret}}},
	}})
}

func request(t testing.TB, resource string) entra.Request {
	t.Helper()
	authority, err := authorities(t, entra.KnownHosts()...).Find("")
	if err != nil {
		t.Fatal(err)
	}
	return entra.Request{Authority: authority, TenantID: tenant, ClientID: clientID, Resource: resource, Credential: entra.NewSecret(secret)}
}

func client(t testing.TB, transport http.RoundTripper, hosts ...string) *entra.Client {
	t.Helper()
	if len(hosts) == 0 {
		hosts = entra.KnownHosts()
	}
	return entra.NewClient(entra.Options{Authorities: authorities(t, hosts...), Transport: transport, UserAgent: "agent/1"})
}

func tokenRequests(entries []journal.Entry) (all, tokens int) {
	for _, e := range entries {
		if strings.HasSuffix(e.Path, "/token") {
			tokens++
		}
	}
	return len(entries), tokens
}

// Every call is one request: the SDK keeps no token, and what an authority says
// of itself is kept.
func TestATokenBySecret(t *testing.T) {
	sim := simulated(t)
	c := client(t, sim.Client().Transport)
	seen := map[string]bool{}
	for range 3 {
		begin := time.Now().Truncate(time.Second)
		token, err := c.Token(t.Context(), request(t, "https://database.windows.net/"))
		if err != nil {
			t.Fatal(err)
		}
		seen[token.Value()] = true
		claims, err := sim.Tokens.Verify(token.Value(), tenant, "https://database.windows.net/")
		if err != nil || claims.AppID != clientID {
			t.Errorf("claims %+v, %v", claims, err)
		}
		if token.ClientID != clientID || token.Resource != "https://database.windows.net/" || token.Type != "Bearer" ||
			token.NotBefore.Before(begin) || token.ExpiresOn.Sub(begin) < 50*time.Minute || token.ExpiresOn.Sub(begin) > 2*time.Hour {
			t.Errorf("got %s for %s, from %s to %s", token.Resource, token.ClientID, token.NotBefore, token.ExpiresOn)
		}
	}
	if all, tokens := tokenRequests(sim.Journal.Since(0)); all != 4 || tokens != 3 || len(seen) != 3 {
		t.Errorf("%d requests, %d for tokens, %d tokens", all, tokens, len(seen))
	}
}

func TestEntraRefuses(t *testing.T) {
	sim := simulated(t)
	for name, test := range map[string]struct {
		change func(*entra.Request)
		words  string
	}{
		"wrong secret":         {func(r *entra.Request) { r.Credential = entra.NewSecret("wr0ng-s3cr3t") }, "AADSTS7000215"},
		"unknown application":  {func(r *entra.Request) { r.ClientID = "aaaaaaaa-0000-4000-8000-000000000009" }, "AADSTS700016"},
		"another tenant":       {func(r *entra.Request) { r.TenantID = "22222222-0000-4000-8000-000000000001" }, "AADSTS90002"},
		"a resource that none": {func(r *entra.Request) { r.Resource = "vault" }, "AADSTS500011"},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(t, "https://vault.azure.net")
			test.change(&r)
			_, err := client(t, sim.Client().Transport).Token(t.Context(), r)
			if name == "another tenant" {
				// The SDK asks the authority about the tenant first.
				if _, ok := errors.AsType[*entra.RefusedError](err); !ok {
					t.Errorf("got %#v", err)
				}
				return
			}
			refused, ok := errors.AsType[*entra.RefusedError](err)
			if !ok || !strings.Contains(refused.Error(), test.words) || strings.Contains(refused.Error(), "Trace ID") || len(refused.Codes) != 1 {
				t.Errorf("got %#v", err)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "s3cr3t") {
				t.Errorf("the error tells the secret: %#v", err)
			}
		})
	}
}

func TestWhatIsNeverSent(t *testing.T) {
	sim := simulated(t)
	for name, test := range map[string]struct {
		change func(*entra.Request)
		words  string
	}{
		"a tenant that climbs":  {func(r *entra.Request) { r.TenantID = "../x" }, "tenantID"},
		"a tenant with a query": {func(r *entra.Request) { r.TenantID = "t?x=y" }, "tenantID"},
		"several scopes":        {func(r *entra.Request) { r.Resource = "https://a https://b" }, "white space"},
		"no authority":          {func(r *entra.Request) { r.Authority = entra.Authority{} }, "may not go"},
		"no secret":             {func(r *entra.Request) { r.Credential = entra.NewSecret("") }, "preparing a credential"},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(t, "https://vault.azure.net")
			test.change(&r)
			if _, err := client(t, sim.Client().Transport).Token(t.Context(), r); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v", err)
			}
		})
	}
	if all, _ := tokenRequests(sim.Journal.Since(0)); all != 0 {
		t.Errorf("%d requests were sent", all)
	}
}

// wild is an authority whose owner is nobody's friend: one TLS server for any
// name, which keeps what it is sent.
type wild struct {
	*httptest.Server
	mu   sync.Mutex // protects all following fields
	sent []string
}

func newWild(t *testing.T, answer http.HandlerFunc) *wild {
	t.Helper()
	w := &wild{}
	w.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		w.sent = append(w.sent, r.Host+r.URL.Path+" "+string(body))
		w.mu.Unlock()
		answer(rw, r)
	}))
	t.Cleanup(w.Close)
	return w
}

// transport dials the server for whatever name.
func (w *wild) transport() http.RoundTripper {
	transport := w.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.ServerName = "example.com"
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, w.Listener.Addr().String())
	}
	return transport
}

func (w *wild) log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.sent, "\n")
}

func describe(w http.ResponseWriter, host, tokenHost string) {
	_ = json.NewEncoder(w).Encode(map[string]string{
		"authorization_endpoint": "https://" + host + "/x/authorize", "issuer": "https://" + host + "/x/v2.0",
		"token_endpoint": "https://" + tokenHost + "/" + tenant + "/oauth2/v2.0/token",
	})
}

// Whatever makes the SDK go elsewhere, the credential does not.
func TestNothingLeavesForAnotherHost(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		region string
	}{
		"a description names it": {answer: func(w http.ResponseWriter, _ *http.Request) { describe(w, public, "attacker.example") }},
		"a redirect of the description": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://attacker.example"+r.URL.Path, http.StatusFound)
		}},
		"a redirect of the token": {answer: func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				describe(w, public, public)
				return
			}
			http.Redirect(w, r, "https://attacker.example"+r.URL.Path, http.StatusTemporaryRedirect)
		}},
		"a region of the environment": {region: "attacker", answer: func(w http.ResponseWriter, r *http.Request) { describe(w, r.Host, r.Host) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AZURE_REGIONAL_AUTHORITY_NAME", test.region)
			t.Setenv("AZURE_AUTHORITY_HOST", "https://attacker.example/")
			server := newWild(t, test.answer)
			if _, err := client(t, server.transport()).Token(t.Context(), request(t, "https://vault.azure.net")); err == nil {
				t.Error("got a token")
			}
			for line := range strings.SplitSeq(server.log(), "\n") {
				if line != "" && !strings.HasPrefix(line, public+"/") {
					t.Errorf("sent to another host: %.40s", line)
				}
			}
		})
	}
}

func TestEntraInTrouble(t *testing.T) {
	answer := func(status int, body string, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				describe(w, public, public)
				return
			}
			for i := 0; i+1 < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body) // a broken connection shows at the client
		}
	}
	words := `{"error":"invalid_client","error_description":"AADSTS1: no\r\nTrace ID: x","error_codes":[1]}`
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   any
	}{
		"throttled":           {answer(429, "", "Retry-After", "7"), &entra.ThrottledError{After: 7 * time.Second}},
		"refused":             {answer(401, words), &entra.RefusedError{Status: 401, Codes: []int{1}, Description: "AADSTS1: no"}},
		"refused, at length":  {answer(400, `{"error":"x","error_description":"`+strings.Repeat("a", 9999)+`"}`), &entra.RefusedError{Status: 400, Description: strings.Repeat("a", 400) + "…"}},
		"down":                {answer(503, words), &entra.UnavailableError{Status: 503}},
		"a captive portal":    {answer(403, "<html>"), &entra.UnavailableError{Status: 403}},
		"no answer":           {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, &entra.UnavailableError{}},
		"an answer of no end": {answer(200, strings.Repeat(" ", 2<<20)), &entra.UnavailableError{}},
		"no token":            {answer(200, "{}"), &entra.UnavailableError{}},
	} {
		t.Run(name, func(t *testing.T) {
			server := newWild(t, test.answer)
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
			_, err := client(t, server.transport()).Token(t.Context(), request(t, "https://vault.azure.net"))
			if down, ok := errors.AsType[*entra.UnavailableError](err); ok {
				err = &entra.UnavailableError{Status: down.Status}
			}
			if diff := cmp.Diff(test.want, err); diff != "" {
				t.Error(diff)
			}
			if n := strings.Count(server.log(), "/token "); n > 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// Entra may be behind the proxy that the environment names.
func TestTheWayThereIsTheEnvironments(t *testing.T) {
	if entra.NewTransport().Proxy == nil {
		t.Error("no proxy is looked for")
	}
}

func TestCredentialsAreNotPrinted(t *testing.T) {
	certificate, err := entra.ParseCertificate([]byte(block("CERTIFICATE", simtest.Certify(t, key(t), time.Now().Add(time.Hour)).Raw)+pkcs8(t, key(t))), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, credential := range []entra.Credential{entra.NewSecret(secret), certificate} {
		asJSON, err := json.Marshal(credential)
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "c", credential, "r", request(t, "r"))
		for _, text := range []string{string(asJSON), log.String(), fmt.Sprint(credential), fmt.Sprintf("%s %v %+v %#v %q %d %x", credential, credential, credential, credential, credential, credential, credential), fmt.Sprintf("%+v %#v", request(t, "r"), request(t, "r"))} {
			if strings.Contains(text, secret) || strings.Contains(text, "73337") || !strings.Contains(text, "redacted") || len(text) > 2000 {
				t.Errorf("printed %s", text)
			}
		}
	}
}
