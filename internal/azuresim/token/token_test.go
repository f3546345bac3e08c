package token_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
)

const tenant = "0a0a0a0a-0000-4000-8000-00000000000a"

func TestVerify(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	clock := func() time.Time { return now }
	issuer, err := token.NewIssuer(token.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	other, err := token.NewIssuer(token.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	minted := mint(t, issuer)
	for name, test := range map[string]struct {
		raw, tenant string
		audiences   []string
		after       time.Duration
		want        error
	}{
		"good":                {minted, tenant, []string{"https://a", "https://b"}, 0, nil},
		"good to the last":    {minted, tenant, []string{"https://a"}, time.Hour - time.Second, nil},
		"expired":             {minted, tenant, []string{"https://a"}, time.Hour, jwt.ErrTokenExpired},
		"not yet":             {minted, tenant, []string{"https://a"}, -6 * time.Minute, jwt.ErrTokenNotValidYet},
		"wrong audience":      {minted, tenant, []string{"https://b"}, 0, jwt.ErrTokenInvalidAudience},
		"audience by prefix":  {minted, tenant, []string{"https://a/"}, 0, jwt.ErrTokenInvalidAudience},
		"another tenant":      {minted, "t", []string{"https://a"}, 0, jwt.ErrTokenInvalidIssuer},
		"another's signature": {mint(t, other), tenant, []string{"https://a"}, 0, jwt.ErrTokenSignatureInvalid},
		"no signature":        {unsigned(t), tenant, []string{"https://a"}, 0, jwt.ErrTokenSignatureInvalid},
		"no token":            {"x", tenant, []string{"https://a"}, 0, jwt.ErrTokenMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			now = time.Unix(1_700_000_000, 0).Add(test.after)
			claims, err := issuer.Verify(test.raw, test.tenant, test.audiences...)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if test.want == nil && claims.ObjectID != "object" {
				t.Errorf("got %+v", claims)
			}
		})
	}
}

func mint(t *testing.T, issuer *token.Issuer) string {
	t.Helper()
	minted, err := issuer.Mint(tenant, state.Principal{ObjectID: "object", ClientID: "client"}, "https://a")
	if err != nil {
		t.Fatal(err)
	}
	return minted.Value.Reveal()
}

func unsigned(t *testing.T) string {
	t.Helper()
	raw, err := jwt.New(jwt.SigningMethodNone).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestAudienceIsOneString(t *testing.T) {
	issuer, err := token.NewIssuer(token.Options{})
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(mint(t, issuer), claims); err != nil {
		t.Fatal(err)
	}
	if claims["aud"] != "https://a" {
		t.Errorf("got %#v", claims["aud"])
	}
}

func TestTokenNeverShows(t *testing.T) {
	minted := token.Token{Value: "s3cr3t"}
	text, err := json.Marshal(minted)
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprintf("%v %+v %#v %v", minted, minted, minted, minted.Value.LogValue()) + string(text)
	if strings.Contains(shown, "s3cr3t") {
		t.Errorf("the token shows in %s", shown)
	}
}

func TestValidResource(t *testing.T) {
	for resource, want := range map[string]bool{
		"https://vault.azure.net":                       true,
		"https://database.windows.net/":                 true,
		"api://AzureADTokenExchange":                    true,
		"cfa8b339-82a2-471a-a3c9-0fc0be7a4093":          true,
		"urn:uuid:cfa8b339-82a2-471a-a3c9-0fc0be7a4093": false,
		"vault.azure.net":                               false,
		"https://":                                      false,
		"https://user@vault.azure.net":                  false,
		"ftp://vault.azure.net":                         false,
		"":                                              false,
	} {
		if got := token.ValidResource(resource); got != want {
			t.Errorf("%q: got %v, want %v", resource, got, want)
		}
	}
}
