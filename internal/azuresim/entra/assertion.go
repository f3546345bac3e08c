package entra

import (
	"crypto/sha1" //nolint:gosec // the thumbprint of a certificate is one
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// assertionType is the only kind of assertion that there is.
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// byCertificate authenticates an application by an assertion that it signed with
// one of its certificates.
func (s *Server) byCertificate(principal state.Principal, form url.Values) (state.Principal, error) {
	if form.Get("client_assertion_type") != assertionType || form.Has("client_secret") {
		return principal, wire.Refuse(http.StatusBadRequest, "invalid_request",
			"AADSTS50027: Invalid client_assertion_type, or a client_secret beside the client_assertion.")
	}
	claims := jwt.RegisteredClaims{}
	audiences := []string{"https://" + Host + "/" + s.State.Tenant() + "/oauth2/v2.0/token", "https://" + Host + "/" + s.State.Tenant() + "/v2.0"}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg(), jwt.SigningMethodPS256.Alg()}), jwt.WithTimeFunc(s.Now), jwt.WithLeeway(5*time.Minute),
		jwt.WithExpirationRequired(), jwt.WithIssuer(principal.ClientID), jwt.WithSubject(principal.ClientID), jwt.WithAudience(audiences...),
	)
	_, err := parser.ParseWithClaims(form.Get("client_assertion"), &claims, func(t *jwt.Token) (any, error) {
		certificate, err := signer(t.Header, s.State.Certificates(principal.ClientID))
		if err != nil {
			return nil, err
		}
		return certificate.PublicKey, nil
	})
	if err == nil && claims.ID == "" {
		err = errors.New("the assertion has no jti")
	}
	if err != nil {
		return principal, refuseAssertion(principal.ClientID, err)
	}
	principal.ByCertificate = true
	return principal, nil
}

var errUnknownCertificate = errors.New("no such certificate")

// signer finds the certificate that the head of an assertion names by its
// thumbprint. A chain in the head must begin with that one.
func signer(header map[string]any, registered []*x509.Certificate) (*x509.Certificate, error) {
	i := slices.IndexFunc(registered, func(c *x509.Certificate) bool {
		old, present := sha1.Sum(c.Raw), sha256.Sum256(c.Raw) //nolint:gosec // see above
		return isThumbprint(header["x5t"], old[:]) || isThumbprint(header["x5t#S256"], present[:])
	})
	if i < 0 {
		return nil, errUnknownCertificate
	}
	chain, ok := header["x5c"].([]any)
	if ok && (len(chain) == 0 || chain[0] != base64.StdEncoding.EncodeToString(registered[i].Raw)) {
		return nil, errors.New("x5c does not begin with the certificate of the thumbprint")
	}
	return registered[i], nil
}

// isThumbprint takes base64 of either alphabet, as Entra does: Microsoft's own
// libraries write the one that RFC 7515 does not.
func isThumbprint(value any, sum []byte) bool {
	text, ok := value.(string)
	folded := strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(text)
	return ok && folded == base64.RawURLEncoding.EncodeToString(sum)
}

func refuseAssertion(clientID string, err error) error {
	code, words := "700027", "The certificate with identifier used to sign the client assertion is not registered on application."
	switch {
	case errors.Is(err, errUnknownCertificate):
	case errors.Is(err, jwt.ErrTokenExpired), errors.Is(err, jwt.ErrTokenNotValidYet):
		code, words = "700024", "Client assertion is not within its valid time range."
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		code, words = "700023", "Client assertion audience claim does not match Realm issuer."
	case errors.Is(err, jwt.ErrTokenInvalidIssuer), errors.Is(err, jwt.ErrTokenInvalidSubject):
		code, words = "700021", "Client assertion application identifier doesn't match 'client_id' parameter."
	default:
		code, words = "50012", "Authentication failed: the client assertion is malformed or its signature is invalid."
	}
	return wire.Refuse(http.StatusUnauthorized, "invalid_client", "AADSTS%s: %s Application '%s'.", code, words, clientID)
}
