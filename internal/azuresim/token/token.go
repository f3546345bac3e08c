// Package token signs and verifies the access tokens of the simulated tenant,
// with an RSA key made at start.
//
// Entra and IMDS sign with it, ARM and Key Vault verify with it, as do the
// tests through the published key set. It must not decide who gets a token.
package token

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
)

// Lifetimes that Entra gives: see [Options].
const (
	DefaultManagedIdentityLifetime = 24 * time.Hour
	DefaultApplicationLifetime     = time.Hour
)

// clockSkew is by how much nbf lies before the present, as in Entra's tokens.
const clockSkew = 5 * time.Minute

// Options are the settings of an [Issuer].
type Options struct {
	Now      func() time.Time // nil: the real clock
	Lifetime time.Duration    // of every token; 0: the defaults above
	Key      *rsa.PrivateKey  // nil: a new one of 2048 bits
	// Factor is by how much time is compressed; nil: not at all. It shortens the
	// default lifetimes, to ten minutes at least: Azure's SDKs renew a token five
	// minutes before its end, so that a shorter one would be of no use to them.
	Factor func() float64
}

// shortest is how long a token lives at least when time is compressed.
const shortest = 10 * time.Minute

// Issuer holds the tenant's signing key. It is safe for concurrent use.
type Issuer struct {
	key      *rsa.PrivateKey
	keyID    string
	now      func() time.Time
	lifetime time.Duration
	factor   func() float64
}

// Secret is a signed token. It never shows in a log or a document.
type Secret string

// String hides the token.
func (Secret) String() string { return "[redacted]" }

// GoString hides the token.
func (Secret) GoString() string { return "[redacted]" }

// LogValue hides the token.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText hides the token: a surface that answers it says [Secret.Reveal].
func (Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Reveal returns the token itself.
func (s Secret) Reveal() string { return string(s) }

// Token is an access token.
type Token struct {
	Value     Secret
	NotBefore time.Time
	ExpiresOn time.Time
	ExpiresIn time.Duration
}

// Claims are those of an access token of version 1.0, in which Entra issues
// tokens for ARM and Key Vault. aud is one string, as Entra writes it.
type Claims struct {
	Issuer    string           `json:"iss"`
	Subject   string           `json:"sub"`
	Audience  string           `json:"aud"`
	IssuedAt  *jwt.NumericDate `json:"iat"`
	NotBefore *jwt.NumericDate `json:"nbf"`
	ExpiresAt *jwt.NumericDate `json:"exp"`
	AppID     string           `json:"appid"`
	AppIDACR  string           `json:"appidacr"` // 1: by secret, 2: by certificate or managed identity
	IDP       string           `json:"idp"`
	IDType    string           `json:"idtyp"`
	ObjectID  string           `json:"oid"`
	TenantID  string           `json:"tid"`
	UniqueID  string           `json:"uti"`
	Version   string           `json:"ver"`
	MIRID     string           `json:"xms_mirid,omitempty"` // managed identities: their ARM ID
}

// The getters make Claims a [jwt.Claims].

// GetIssuer returns iss.
func (c Claims) GetIssuer() (string, error) { return c.Issuer, nil }

// GetSubject returns sub.
func (c Claims) GetSubject() (string, error) { return c.Subject, nil }

// GetAudience returns aud.
func (c Claims) GetAudience() (jwt.ClaimStrings, error) { return jwt.ClaimStrings{c.Audience}, nil }

// GetIssuedAt returns iat.
func (c Claims) GetIssuedAt() (*jwt.NumericDate, error) { return c.IssuedAt, nil }

// GetNotBefore returns nbf.
func (c Claims) GetNotBefore() (*jwt.NumericDate, error) { return c.NotBefore, nil }

// GetExpirationTime returns exp.
func (c Claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.ExpiresAt, nil }

// NewIssuer makes an issuer, with a new signing key unless o has one.
func NewIssuer(o Options) (*Issuer, error) {
	if o.Key == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, fmt.Errorf("making the signing key: %w", err)
		}
		o.Key = key
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	sum := sha256.Sum256(o.Key.N.Bytes())
	if o.Factor == nil {
		o.Factor = func() float64 { return 1 }
	}
	return &Issuer{key: o.Key, keyID: encode(sum[:20]), now: o.Now, lifetime: o.Lifetime, factor: o.Factor}, nil
}

// IssuerURL is the iss claim of the tenant's tokens.
func IssuerURL(tenant string) string { return "https://sts.windows.net/" + tenant + "/" }

// Mint signs a token that lets p call audience.
func (i *Issuer) Mint(tenant string, p state.Principal, audience string) (Token, error) {
	now := i.now().Truncate(time.Second)
	lifetime, acr := i.lifetime, "1"
	if p.ResourceID != "" || p.ByCertificate {
		acr = "2"
	}
	if lifetime == 0 {
		lifetime = i.usualLifetime(p)
	}
	unique := make([]byte, 16)
	if _, err := rand.Read(unique); err != nil {
		return Token{}, fmt.Errorf("making a token's uti: %w", err)
	}
	t := Token{NotBefore: now.Add(-clockSkew), ExpiresOn: now.Add(lifetime), ExpiresIn: lifetime}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodRS256, Claims{
		Issuer: IssuerURL(tenant), Subject: p.ObjectID, Audience: audience,
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(t.NotBefore), ExpiresAt: jwt.NewNumericDate(t.ExpiresOn),
		AppID: p.ClientID, AppIDACR: acr, IDP: IssuerURL(tenant), IDType: "app",
		ObjectID: p.ObjectID, TenantID: tenant, UniqueID: encode(unique), Version: "1.0", MIRID: p.ResourceID,
	})
	unsigned.Header["kid"], unsigned.Header["x5t"] = i.keyID, i.keyID
	signed, err := unsigned.SignedString(i.key)
	if err != nil {
		return Token{}, fmt.Errorf("signing a token: %w", err)
	}
	t.Value = Secret(signed)
	return t, nil
}

func (i *Issuer) usualLifetime(p state.Principal) time.Duration {
	lifetime := DefaultApplicationLifetime
	if p.ResourceID != "" {
		lifetime = DefaultManagedIdentityLifetime
	}
	return max(time.Duration(float64(lifetime)/i.factor()), min(lifetime, shortest)).Truncate(time.Second)
}

// Verify checks signature, issuer, audience and times. The error wraps one of
// the sentinels of golang-jwt, such as jwt.ErrTokenExpired. The claims are
// filled in, as far as they could be read, also with an error.
func (i *Issuer) Verify(raw, tenant string, audiences ...string) (Claims, error) {
	var claims Claims
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}), jwt.WithTimeFunc(i.now),
		jwt.WithExpirationRequired(), jwt.WithIssuer(IssuerURL(tenant)), jwt.WithAudience(audiences...),
	)
	_, err := parser.ParseWithClaims(raw, &claims, func(*jwt.Token) (any, error) { return &i.key.PublicKey, nil })
	if err != nil {
		return claims, fmt.Errorf("verifying a token: %w", err)
	}
	return claims, nil
}

// Key is a public signing key as a JSON Web Key.
type Key struct {
	Type  string `json:"kty"`
	Use   string `json:"use"`
	KeyID string `json:"kid"`
	X5T   string `json:"x5t"`
	N     string `json:"n"`
	E     string `json:"e"`
}

// Keys returns the public keys that verify the tenant's tokens.
func (i *Issuer) Keys() []Key {
	return []Key{{
		Type: "RSA", Use: "sig", KeyID: i.keyID, X5T: i.keyID,
		N: encode(i.key.N.Bytes()), E: encode(big.NewInt(int64(i.key.E)).Bytes()),
	}}
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// ValidResource reports whether s can name a resource (an audience): a URI with
// a host, or an application's GUID. Which of them exist is not simulated.
func ValidResource(s string) bool {
	if _, err := uuid.Parse(s); err == nil {
		return len(s) == 36
	}
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http" || u.Scheme == "api") && u.Host != "" && u.User == nil && u.Fragment == ""
}
