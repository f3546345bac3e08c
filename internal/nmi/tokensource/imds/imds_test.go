package imds_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	azureimds "github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

type client func(azureimds.Query) (azureimds.Token, error)

func (c client) Token(_ context.Context, query azureimds.Query) (azureimds.Token, error) {
	return c(query)
}

func request(t *testing.T) tokensource.Request {
	t.Helper()
	clientID, err := identity.ParseClientID("C-1")
	if err != nil {
		t.Fatal(err)
	}
	return tokensource.Request{Identity: identity.Identity{Key: identity.Key{Namespace: "ns", Name: "a"}, ClientID: clientID}, Resource: "r"}
}

func TestAsksByClientID(t *testing.T) {
	var got azureimds.Query
	source := imds.New(client(func(query azureimds.Query) (azureimds.Token, error) {
		got = query
		return azureimds.NewToken("v", azureimds.Token{}), nil
	}), nil)
	token, err := source.Token(t.Context(), request(t))
	if err != nil || token.Value() != "v" {
		t.Fatalf("got %q, %v", token.Value(), err)
	}
	if got != (azureimds.Query{Resource: "r", ClientID: "c-1"}) {
		t.Errorf("asked %+v", got)
	}
	fresh := request(t)
	fresh.Fresh = true
	if _, err := source.Token(t.Context(), fresh); err != nil || !got.BypassCache {
		t.Errorf("asked %+v for a fresh one, %v", got, err)
	}
}

// An identity of before there was validation may have its resource ID alone. It
// is asked for by that, and one without either never.
func TestAsksByResourceIDWhereThereIsNoOther(t *testing.T) {
	id, err := armid.ParseUserAssigned("/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/a")
	if err != nil {
		t.Fatal(err)
	}
	refused := &azureimds.RefusedError{Status: 400, Description: "Identity not found"}
	var got azureimds.Query
	source := imds.New(client(func(query azureimds.Query) (azureimds.Token, error) { got = query; return azureimds.Token{}, refused }), nil)
	_, err = source.Token(t.Context(), tokensource.Request{Identity: identity.Identity{ResourceID: id}, Resource: "r"})
	if got != (azureimds.Query{Resource: "r", ResourceID: id}) || !strings.Contains(refusal.Of(err).Message, "resource ID "+id.String()) {
		t.Errorf("asked %+v, said %v", got, err)
	}
}

func TestExplainsWhatUpstreamSays(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		reason v1.Reason
		after  time.Duration
		code   string
		words  string
	}{
		"identity not attached": {&azureimds.RefusedError{Status: 400, Description: "Identity not found"}, v1.ReasonUpstreamRefused, 0, "refused", "Identity not found: AzureIdentity ns/a"},
		"resource unknown":      {&azureimds.RefusedError{Status: 400, Description: "AADSTS500011"}, v1.ReasonUpstreamRefused, 0, "refused", "AADSTS500011"},
		"throttled":             {&azureimds.ThrottledError{After: 3 * time.Second}, v1.ReasonUpstreamThrottled, 3 * time.Second, "throttled", "fewer requests"},
		"updating":              {&azureimds.UpdatingError{Status: 410}, v1.ReasonUpstreamUpdating, 0, "updating", "70 seconds"},
		"down":                  {&azureimds.UnavailableError{Err: errors.New("dial 10.1.2.3")}, v1.ReasonUpstreamUnavailable, 0, "unavailable", "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			var code string
			source := imds.New(client(func(azureimds.Query) (azureimds.Token, error) { return azureimds.Token{}, test.err }),
				func(c string, _ time.Duration) { code = c })
			_, err := source.Token(t.Context(), request(t))
			got := refusal.Of(err)
			if got.Reason != test.reason || got.After != test.after || code != test.code || !errors.Is(got, test.err) {
				t.Errorf("got %+v, code %s", got, code)
			}
			if !strings.Contains(got.Message, test.words) || strings.Contains(got.Message, "10.1.2.3") {
				t.Errorf("message: %s", got.Message)
			}
		})
	}
}
