package azuresim_test

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

// The SDK keeps one token cache per process, so every test asks for a resource
// of its own.

func TestManagedIdentityCredentialGetsATokenOfTheRightIdentity(t *testing.T) {
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID, otherID}
	a := start(t, azuresim.Config{State: doc})
	for name, id := range map[string]azidentity.ManagedIDKind{
		"by client ID":           azidentity.ClientID(demoClientID),
		"by client ID, upper":    azidentity.ClientID(strings.ToUpper(demoClientID)),
		"by object ID":           azidentity.ObjectID(demoObjectID),
		"by resource ID":         azidentity.ResourceID(demoID),
		"by resource ID, folded": azidentity.ResourceID(strings.ToLower(demoID)),
	} {
		t.Run(name, func(t *testing.T) {
			raw := managedIdentityToken(t, a, id, "https://vault.azure.net/.default")
			want := jwt.MapClaims{
				"aud": "https://vault.azure.net", "iss": "https://sts.windows.net/" + tenant + "/", "tid": tenant, "ver": "1.0",
				"oid": demoObjectID, "sub": demoObjectID, "appid": demoClientID, "appidacr": "2", "idtyp": "app",
				"idp":       "https://sts.windows.net/" + tenant + "/",
				"xms_mirid": strings.Replace(demoID, "resourceGroups", "resourcegroups", 1),
			}
			got := verify(t, a, raw)
			for _, name := range []string{"iat", "nbf", "exp", "uti"} {
				if got[name] == nil {
					t.Errorf("claim %s is missing", name)
				}
				delete(got, name)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
		})
	}
}

func TestManagedIdentityCredentialWithoutAnID(t *testing.T) {
	system := &model.SystemAssigned{ClientID: "cccccccc-0000-4000-8000-000000000001", PrincipalID: "cccccccc-0000-4000-8000-000000000002"}
	for name, test := range map[string]struct {
		system   *model.SystemAssigned
		attached []string
		want     string // object ID; empty: refused
		words    string
	}{
		"the only user-assigned one":          {nil, []string{demoID}, demoObjectID, ""},
		"the system-assigned one":             {system, nil, system.PrincipalID, ""},
		"the system-assigned one comes first": {system, []string{demoID, otherID}, system.PrincipalID, ""},
		"several user-assigned ones":          {nil, []string{demoID, otherID}, "", "Multiple user assigned identities exist"},
		"none":                                {nil, nil, "", "Identity not found"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.ScaleSets[0].SystemAssigned, doc.ScaleSets[0].UserAssigned = test.system, test.attached
			a := start(t, azuresim.Config{State: doc})
			scope := "https://" + strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", "") + ".example/.default"
			if test.want != "" {
				if got := verify(t, a, managedIdentityToken(t, a, nil, scope))["oid"]; got != test.want {
					t.Errorf("got a token of %v, want %s", got, test.want)
				}
				return
			}
			_, err := managedIdentity(t, a, nil).GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{scope}})
			if err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want a refusal that says %q", err, test.words)
			}
		})
	}
}

func TestManagedIdentityCredentialRefusesWhatIsNotAttachedToTheNode(t *testing.T) {
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID}
	doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: scaleSetID + "2", UserAssigned: []string{foreignID}})
	doc.Identities[2].ClientID = "dddddddd-0000-4000-8000-000000000001"
	doc.Nodes = append(doc.Nodes, model.Node{Name: "node-1", ScaleSet: scaleSetID + "2", Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}})
	a := start(t, azuresim.Config{State: doc})
	for name, id := range map[string]azidentity.ManagedIDKind{
		"of another scale set": azidentity.ClientID(doc.Identities[2].ClientID),
		"of nobody":            azidentity.ClientID("eeeeeeee-0000-4000-8000-000000000001"),
		"attached nowhere":     azidentity.ResourceID(otherID),
		"not even a client ID": azidentity.ClientID("demo"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := managedIdentity(t, a, id).GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://refused.example/.default"}})
			var failed *azidentity.AuthenticationFailedError
			if !errors.As(err, &failed) || failed.RawResponse.StatusCode != http.StatusBadRequest {
				t.Fatalf("got %v, want AuthenticationFailedError with 400", err)
			}
			if !strings.Contains(err.Error(), "Identity not found") {
				t.Errorf("%v does not say Identity not found", err)
			}
		})
	}
}

func TestClientSecretCredential(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	got := verify(t, a, token(t, clientSecret(t, a, tenant, micClientID, secret), "https://management.azure.com//.default"))
	for claim, want := range map[string]any{"aud": "https://management.azure.com/", "oid": micObjectID, "appid": micClientID, "appidacr": "1", "xms_mirid": nil} {
		if got[claim] != want {
			t.Errorf("claim %s: got %v, want %v", claim, got[claim], want)
		}
	}
}

func TestClientSecretCredentialRefused(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	for name, test := range map[string]struct {
		tenant, client string
		secret         model.Secret
		scope          string
		status         int
		words          string
	}{
		"wrong secret":        {tenant, micClientID, "wrong", "https://vault.azure.net/.default", 401, "AADSTS7000215: Invalid client secret provided"},
		"unknown application": {tenant, demoClientID, secret, "https://vault.azure.net/.default", 400, "AADSTS700016: Application with identifier '" + demoClientID},
		"unknown tenant":      {subscription, micClientID, secret, "https://vault.azure.net/.default", 400, "AADSTS90002: Tenant '" + subscription},
		"no /.default":        {tenant, micClientID, secret, "https://vault.azure.net/read", 400, "AADSTS1002012"},
		"no resource":         {tenant, micClientID, secret, "vault/.default", 400, "AADSTS500011"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := clientSecret(t, a, test.tenant, test.client, test.secret).GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{test.scope}})
			var failed *azidentity.AuthenticationFailedError
			if !errors.As(err, &failed) {
				t.Fatalf("got %v, want AuthenticationFailedError", err)
			}
			if failed.RawResponse != nil && failed.RawResponse.StatusCode != test.status {
				t.Errorf("got status %d, want %d", failed.RawResponse.StatusCode, test.status)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("%v does not say %q", err, test.words)
			}
		})
	}
}

func TestTokenLifetimes(t *testing.T) {
	for name, test := range map[string]struct {
		configured, managed, application time.Duration
		factor                           float64
	}{
		"the defaults":               {0, 24 * time.Hour, time.Hour, 0},
		"one configured":             {5 * time.Minute, 5 * time.Minute, 5 * time.Minute, 30},
		"compressed to what is used": {0, 48 * time.Minute, 10 * time.Minute, 30},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.ScaleSets[0].UserAssigned = []string{demoID}
			a := start(t, azuresim.Config{State: doc, TokenLifetime: test.configured, Settings: settings.Settings{ClockFactor: test.factor}})
			scope := "https://" + strings.ReplaceAll(name, " ", "-") + ".lifetime.example/.default"
			for raw, want := range map[string]time.Duration{
				managedIdentityToken(t, a, nil, scope):                           test.managed,
				token(t, clientSecret(t, a, tenant, micClientID, secret), scope): test.application,
			} {
				claims := verify(t, a, raw)
				got := time.Unix(int64(claims["exp"].(float64)), 0).Sub(time.Unix(int64(claims["iat"].(float64)), 0))
				if got != want {
					t.Errorf("%v: got %s, want %s", claims["appid"], got, want)
				}
			}
		})
	}
}

func managedIdentity(t *testing.T, a *azure, id azidentity.ManagedIDKind) azcore.TokenCredential {
	t.Helper()
	credential, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: a.clientOptions(), ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return credential
}

func managedIdentityToken(t *testing.T, a *azure, id azidentity.ManagedIDKind, scope string) string {
	t.Helper()
	return token(t, managedIdentity(t, a, id), scope)
}

func clientSecret(t *testing.T, a *azure, tenant, client string, secret model.Secret) azcore.TokenCredential {
	t.Helper()
	credential, err := azidentity.NewClientSecretCredential(tenant, client, string(secret),
		&azidentity.ClientSecretCredentialOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	return credential
}

func token(t *testing.T, credential azcore.TokenCredential, scope string) string {
	t.Helper()
	got, err := credential.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{scope}})
	if err != nil {
		t.Fatal(err)
	}
	return got.Token
}

// verify checks a token as any resource server would: from the discovery
// document to the published keys.
func verify(t *testing.T, a *azure, raw string) jwt.MapClaims {
	t.Helper()
	var discovery struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	get(t, a, "https://login.microsoftonline.com/"+tenant+"/.well-known/openid-configuration", &discovery)
	var set struct {
		Keys []struct{ Kid, N, E string } `json:"keys"`
	}
	get(t, a, discovery.JWKSURI, &set)
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(raw, claims, func(unverified *jwt.Token) (any, error) {
		for _, key := range set.Keys {
			if key.Kid == unverified.Header["kid"] {
				return publicKey(t, key.N, key.E), nil
			}
		}
		return nil, errors.New("no such key")
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(discovery.Issuer), jwt.WithExpirationRequired())
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

func publicKey(t *testing.T, n, e string) *rsa.PublicKey {
	t.Helper()
	modulus, err := base64.RawURLEncoding.DecodeString(n)
	if err != nil {
		t.Fatal(err)
	}
	exponent, err := base64.RawURLEncoding.DecodeString(e)
	if err != nil {
		t.Fatal(err)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(new(big.Int).SetBytes(exponent).Int64())}
}

func get(t *testing.T, a *azure, url string, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := a.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", url, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}
