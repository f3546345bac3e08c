package azuresim_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

// signing is a certificate with its key, and an application that has it.
type signing struct {
	key         *rsa.PrivateKey
	certificate *x509.Certificate
}

func newSigning(t *testing.T) signing {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signing{key, simtest.Certify(t, key, time.Now().Add(time.Hour))}
}

func (s signing) document() model.Document {
	doc := document()
	doc.Applications[0].Certificates = []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.certificate.Raw}))}
	return doc
}

func TestClientCertificateCredential(t *testing.T) {
	ours := newSigning(t)
	a := start(t, azuresim.Config{State: ours.document()})
	for name, chain := range map[string]bool{"with its chain": true, "by its thumbprint alone": false} {
		t.Run(name, func(t *testing.T) {
			credential, err := azidentity.NewClientCertificateCredential(tenant, micClientID, []*x509.Certificate{ours.certificate}, crypto.PrivateKey(ours.key),
				&azidentity.ClientCertificateCredentialOptions{ClientOptions: a.clientOptions(), SendCertificateChain: chain})
			if err != nil {
				t.Fatal(err)
			}
			got := verify(t, a, token(t, credential, "https://vault.azure.net/.default"))
			if got["appid"] != micClientID || got["appidacr"] != "2" {
				t.Errorf("got %v", got)
			}
		})
	}
}

// assert asks for a token with an assertion as a test wants it.
func (s signing) assert(t *testing.T, a *azure, change func(*jwt.Token, jwt.MapClaims, url.Values)) string {
	t.Helper()
	now := time.Now()
	claims := jwt.MapClaims{
		"aud": "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/token", "iss": micClientID, "sub": micClientID, "jti": "1",
		"nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodPS256, claims)
	sum := sha256.Sum256(s.certificate.Raw)
	unsigned.Header["x5t#S256"] = base64.RawURLEncoding.EncodeToString(sum[:])
	form := url.Values{
		"client_id": {micClientID}, "scope": {"https://vault.azure.net/.default"}, "grant_type": {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	change(unsigned, claims, form)
	var signWith any = s.key
	if unsigned.Method == jwt.SigningMethodHS256 {
		signWith = s.certificate.RawSubjectPublicKeyInfo
	}
	signed, err := unsigned.SignedString(signWith)
	if err != nil {
		t.Fatal(err)
	}
	form.Set("client_assertion", signed)
	response, err := a.Client().Post("https://login.microsoftonline.com/"+tenant+"/oauth2/v2.0/token", "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	if response.StatusCode == http.StatusOK {
		return ""
	}
	code, _, _ := strings.Cut(answer.Description, ":")
	return code
}

func TestAssertionsAreVerified(t *testing.T) {
	ours, others := newSigning(t), newSigning(t)
	a := start(t, azuresim.Config{State: ours.document()})
	for name, test := range map[string]struct {
		by     signing
		change func(*jwt.Token, jwt.MapClaims, url.Values)
		want   string
	}{
		"all is well":          {ours, func(*jwt.Token, jwt.MapClaims, url.Values) {}, ""},
		"RS256 and SHA-1":      {ours, func(u *jwt.Token, _ jwt.MapClaims, _ url.Values) { rs256(u, ours) }, ""},
		"a stranger's":         {others, func(*jwt.Token, jwt.MapClaims, url.Values) {}, "AADSTS700027"},
		"signed by a stranger": {others, func(u *jwt.Token, _ jwt.MapClaims, _ url.Values) { rs256(u, ours) }, "AADSTS50012"},
		"no thumbprint":        {ours, func(u *jwt.Token, _ jwt.MapClaims, _ url.Values) { delete(u.Header, "x5t#S256") }, "AADSTS700027"},
		"a chain of others":    {ours, func(u *jwt.Token, _ jwt.MapClaims, _ url.Values) { u.Header["x5c"] = []any{"AA=="} }, "AADSTS50012"},
		"the key as a secret": {ours, func(u *jwt.Token, _ jwt.MapClaims, _ url.Values) {
			u.Method, u.Header["alg"] = jwt.SigningMethodHS256, "HS256"
		}, "AADSTS50012"},
		"expired":            {ours, func(_ *jwt.Token, c jwt.MapClaims, _ url.Values) { c["exp"] = time.Now().Add(-time.Hour).Unix() }, "AADSTS700024"},
		"without an end":     {ours, func(_ *jwt.Token, c jwt.MapClaims, _ url.Values) { delete(c, "exp") }, "AADSTS50012"},
		"for somewhere else": {ours, func(_ *jwt.Token, c jwt.MapClaims, _ url.Values) { c["aud"] = "https://login.attacker.example" }, "AADSTS700023"},
		"of somebody else":   {ours, func(_ *jwt.Token, c jwt.MapClaims, _ url.Values) { c["iss"] = demoClientID }, "AADSTS700021"},
		"without a jti":      {ours, func(_ *jwt.Token, c jwt.MapClaims, _ url.Values) { delete(c, "jti") }, "AADSTS50012"},
		"with a secret, too": {ours, func(_ *jwt.Token, _ jwt.MapClaims, f url.Values) { f.Set("client_secret", "x") }, "AADSTS50027"},
		"of another type":    {ours, func(_ *jwt.Token, _ jwt.MapClaims, f url.Values) { f.Set("client_assertion_type", "saml") }, "AADSTS50027"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.by.assert(t, a, test.change); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func rs256(unsigned *jwt.Token, by signing) {
	sum := sha1.Sum(by.certificate.Raw)
	unsigned.Method, unsigned.Header["alg"] = jwt.SigningMethodRS256, "RS256"
	delete(unsigned.Header, "x5t#S256")
	unsigned.Header["x5t"] = base64.URLEncoding.EncodeToString(sum[:])
}

func TestCertificatesOfADocument(t *testing.T) {
	doc := newSigning(t).document()
	a := start(t, azuresim.Config{State: doc})
	if got := a.State.Snapshot().Applications[0].Certificates; len(got) != 1 || got[0] != doc.Applications[0].Certificates[0] {
		t.Errorf("read back %q", got)
	}
	for _, bad := range []string{"", "x", doc.Applications[0].Certificates[0] + doc.Applications[0].Certificates[0], "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"} {
		doc.Applications[0].Certificates = []string{bad}
		if _, err := azuresim.New(azuresim.Config{State: doc}); err == nil || !strings.Contains(err.Error(), "certificate 1") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}
