package principal_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/principal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// stage is what stands behind a source: an Entra that answers one thing, and one
// credential.
type stage struct {
	answer   error
	refused  error
	asked    []entra.Request
	opened   int
	doubted  int
	observed []string
}

func (s *stage) Token(_ context.Context, request entra.Request) (imds.Token, error) {
	s.asked = append(s.asked, request)
	return imds.NewToken("v", imds.Token{}), s.answer
}

func (s *stage) Current(context.Context, identity.Identity) (tokensource.Credential, error) {
	s.opened++
	return tokensource.Credential{Version: "7"}, s.refused
}

func (s *stage) Credential(context.Context, identity.Identity) (entra.Credential, error) {
	s.opened++
	return entra.NewSecret("s3cr3t"), s.refused
}

func (s *stage) Doubt(identity.Identity) { s.doubted++ }

func (s *stage) source(t *testing.T) *principal.Source {
	t.Helper()
	authorities, err := entra.ParseAuthorities(entra.KnownHosts())
	if err != nil {
		t.Fatal(err)
	}
	return principal.New(principal.Options{Client: s, Credentials: s, Authorities: authorities,
		Observe: func(code string, _ time.Duration) { s.observed = append(s.observed, code) }})
}

func request(t *testing.T, change func(*identity.Identity)) tokensource.Request {
	t.Helper()
	clientID, err := identity.ParseClientID("C-1")
	if err != nil {
		t.Fatal(err)
	}
	id := identity.Identity{Key: identity.Key{Namespace: "ns", Name: "a"}, Kind: identity.ServicePrincipal, ClientID: clientID,
		TenantID: "tenant", Credential: identity.Key{Namespace: "ns", Name: "secret"}}
	if change != nil {
		change(&id)
	}
	return tokensource.Request{Identity: id, Resource: "r"}
}

func TestAsksAsTheIdentitySays(t *testing.T) {
	s := &stage{}
	if current, err := s.source(t).Current(t.Context(), request(t, nil).Identity); err != nil || current.Version != "7" {
		t.Errorf("got version %q, %v", current.Version, err)
	}
	token, err := s.source(t).Token(t.Context(), request(t, func(id *identity.Identity) { id.Authority = "https://login.microsoftonline.us" }))
	if err != nil || token.Value() != "v" {
		t.Fatal(err)
	}
	got := s.asked[0]
	if got.Authority.String() != "https://login.microsoftonline.us/" || got.TenantID != "tenant" || got.ClientID != "c-1" || got.Resource != "r" || strings.Join(s.observed, "") != "ok" {
		t.Errorf("asked %+v, observed %v", got, s.observed)
	}
}

// A credential is not even opened for a place that it must not go to.
func TestWhereACredentialMayNotGo(t *testing.T) {
	for name, change := range map[string]func(*identity.Identity){
		"another authority":   func(id *identity.Identity) { id.Authority = "https://login.attacker.example/" },
		"in front of an @":    func(id *identity.Identity) { id.Authority = "https://login.microsoftonline.com@attacker.example/" },
		"by http":             func(id *identity.Identity) { id.Authority = "http://login.microsoftonline.com/" },
		"a path in a tenant":  func(id *identity.Identity) { id.TenantID = "x/../../y" },
		"no tenant":           func(id *identity.Identity) { id.TenantID = "" },
		"a host in a tenant":  func(id *identity.Identity) { id.TenantID = "@attacker.example" },
		"a query in a tenant": func(id *identity.Identity) { id.TenantID = "t?x" },
	} {
		t.Run(name, func(t *testing.T) {
			s := &stage{}
			_, err := s.source(t).Token(t.Context(), request(t, change))
			if refused := refusal.Of(err); err == nil || refused.Reason != v1.ReasonAuthorityForbidden || !strings.Contains(refused.Message, "ns/a") {
				t.Errorf("got %v", err)
			}
			if _, err := s.source(t).Current(t.Context(), request(t, change).Identity); err == nil || refusal.Of(err).Reason != v1.ReasonAuthorityForbidden {
				t.Errorf("its version: %v", err)
			}
			if s.opened+len(s.asked) > 0 {
				t.Error("the credential was touched")
			}
		})
	}
}

func TestExplainsWhatEntraSays(t *testing.T) {
	for name, test := range map[string]struct {
		answer  error
		reason  v1.Reason
		after   time.Duration
		code    string
		words   string
		doubted int
	}{
		"wrong secret":      {&entra.RefusedError{Status: 401, Codes: []int{7000215}, Description: "AADSTS7000215: no"}, v1.ReasonUpstreamRefused, 0, "refused", "Secret ns/secret is wrong", 1},
		"expired secret":    {&entra.RefusedError{Status: 401, Codes: []int{7000222}, Description: "AADSTS7000222: no"}, v1.ReasonUpstreamRefused, 0, "refused", "has expired", 1},
		"unknown tenant":    {&entra.RefusedError{Status: 400, Codes: []int{90002}, Description: "AADSTS90002: no"}, v1.ReasonUpstreamRefused, 0, "refused", "tenant tenant is not known", 1},
		"something else":    {&entra.RefusedError{Status: 400, Description: "AADSTS9: other"}, v1.ReasonUpstreamRefused, 0, "refused", "AADSTS9: other", 1},
		"throttled":         {&entra.ThrottledError{After: 3 * time.Second}, v1.ReasonUpstreamThrottled, 3 * time.Second, "throttled", "fewer requests", 0},
		"down":              {&entra.UnavailableError{Err: errors.New("dial 10.1.2.3")}, v1.ReasonUpstreamUnavailable, 0, "unavailable", "does not answer", 0},
		"led elsewhere":     {&entra.ForbiddenError{Endpoint: "https://attacker.example/"}, v1.ReasonAuthorityForbidden, 0, "forbidden", "attacker.example", 0},
		"no request at all": {&entra.InvalidError{Err: errors.New("white space")}, v1.ReasonInvalidRequest, 0, "forbidden", "white space", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stage{answer: test.answer}
			_, err := s.source(t).Token(t.Context(), request(t, nil))
			got := refusal.Of(err)
			if err == nil || got.Reason != test.reason || got.After != test.after || strings.Join(s.observed, "") != test.code || s.doubted != test.doubted {
				t.Errorf("got %+v, observed %v, doubted %d", got, s.observed, s.doubted)
			}
			if !strings.Contains(got.Message, test.words) || strings.Contains(got.Message, "10.1.2.3") {
				t.Errorf("message: %s", got.Message)
			}
		})
	}
}

func TestWithoutACredentialNothingIsAsked(t *testing.T) {
	s := &stage{refused: refusal.New(v1.ReasonSecretNotFound, "m")}
	if _, err := s.source(t).Token(t.Context(), request(t, nil)); err == nil || refusal.Of(err).Reason != v1.ReasonSecretNotFound || len(s.asked) > 0 {
		t.Errorf("got %v, asked %d", err, len(s.asked))
	}
}
