// Package keyvault answers as the key vaults of the simulated tenant: it gives
// secrets to callers whose token and role allow it, and challenges the others.
//
// It must not write: secrets are written through the control API.
package keyvault

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// HostSuffix is what follows a vault's name in its host name.
const HostSuffix = ".vault.azure.net"

// resource is what tokens for Key Vault are asked for.
const resource = "https://vault.azure.net"

// Server is the surface of all vaults.
type Server struct {
	State  *state.State
	Tokens *token.Issuer
}

// apiVersions are those that are served: the one of azsecrets v1.5.1 and the
// long-lived ones before it, which older SDKs send for the same request.
func apiVersions() []string { return []string{"7.4", "7.5", "7.6", "2025-07-01", "2026-04-01"} }

// Surface returns Key Vault for [wire.Recorder.Handler].
func (s *Server) Surface() wire.Surface {
	return wire.Surface{Name: journal.KeyVault, Serve: s.serve, Render: render, Headers: headers}
}

func headers() http.Header {
	return http.Header{
		"X-Ms-Request-Id": {uuid.NewString()}, "X-Ms-Keyvault-Service-Version": {"1.9.2150.1"}, "X-Ms-Keyvault-Region": {"westeurope"},
		"Strict-Transport-Security": {"max-age=31536000;includeSubDomains"}, "X-Content-Type-Options": {"nosniff"},
	}
}

type errorBody struct {
	Code    string      `json:"code"`
	Message string      `json:"message"`
	Inner   *innerError `json:"innererror,omitempty"`
}

type innerError struct {
	Code string `json:"code"`
}

// forbiddenByRBAC is the code of the inner error when a role is missing.
const forbiddenByRBAC = "ForbiddenByRbac"

func render(_ *wire.Call, e *wire.Error) any {
	body := errorBody{Code: e.Code, Message: e.Message}
	if e.Code == "Forbidden" {
		body.Inner = &innerError{forbiddenByRBAC}
	}
	return struct {
		Error errorBody `json:"error"`
	}{body}
}

func (s *Server) serve(call *wire.Call) (wire.Reply, error) {
	vault := vaultName(call.Host)
	vaultID, ok := s.State.VaultID(vault)
	if !ok {
		return wire.Reply{}, wire.Unexpected(http.StatusNotFound, "VaultNotFound", "There is no vault '%s'.", vault)
	}
	name, version, err := parsePath(call)
	if err != nil {
		return wire.Reply{}, err
	}
	if err := checkQuery(call); err != nil {
		return wire.Reply{}, err
	}
	claims, err := s.authenticate(call)
	if err != nil {
		return wire.Reply{}, err
	}
	call.Entry.Principal = claims.ObjectID
	scope := vaultID + "/secrets/" + name
	if s.State.Authorize(claims.ObjectID, state.ActionGetSecret, scope) != nil {
		return wire.Reply{}, forbidden(claims, scope, vault)
	}
	secret, err := s.State.Secret(vault, name, version)
	if errors.Is(err, state.ErrNotFound) {
		return wire.Reply{}, wire.Refuse(http.StatusNotFound, "SecretNotFound",
			"A secret with (name/id) %s was not found in this key vault. If you recently deleted this secret you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182", strings.TrimSuffix(name+"/"+version, "/"))
	}
	if err != nil {
		return wire.Reply{}, err
	}
	return wire.Reply{Body: encodeSecret(secret, vault)}, nil
}

func vaultName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ":")
	return strings.TrimSuffix(host, HostSuffix)
}

// parsePath reads /secrets/NAME[/VERSION]; an SDK without a version leaves the
// slash before it.
func parsePath(call *wire.Call) (name, version string, err error) {
	segments := strings.Split(strings.TrimPrefix(call.URL.Path, "/"), "/")
	if len(segments) < 2 || len(segments) > 3 || !strings.EqualFold(segments[0], "secrets") || segments[1] == "" {
		return "", "", wire.Unexpected(http.StatusNotFound, "NotFound", "The path '%s' is not simulated.", call.URL.Path)
	}
	if call.Method != http.MethodGet {
		return "", "", wire.Unexpected(http.StatusMethodNotAllowed, "MethodNotAllowed", "The method %s is not simulated.", call.Method)
	}
	if len(segments) == 3 {
		version = segments[2]
	}
	return segments[1], version, nil
}

func checkQuery(call *wire.Call) error {
	query, err := wire.Query(call, "api-version")
	if err != nil {
		return err
	}
	version := query.Get("api-version")
	if version == "" {
		return wire.Unexpected(http.StatusBadRequest, "BadParameter", "api-version must be specified")
	}
	if !slices.Contains(apiVersions(), version) {
		return wire.Unexpected(http.StatusBadRequest, "BadParameter", "The specified version (%s) is not recognized. Consider using the latest supported version (%s).",
			version, apiVersions()[len(apiVersions())-1])
	}
	return nil
}

// authenticate answers a caller without a good token with the challenge from
// which SDKs learn the tenant and the resource.
func (s *Server) authenticate(call *wire.Call) (token.Claims, error) {
	tenant := s.State.Tenant()
	raw, ok := wire.Bearer(call.Request)
	if !ok {
		return token.Claims{}, challenge(tenant, "AKV10000: Request is missing a Bearer or PoP token.")
	}
	claims, err := s.Tokens.Verify(raw, tenant, resource, resource+"/")
	switch {
	case err == nil:
		return claims, nil
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenMalformed), errors.Is(err, jwt.ErrTokenUnverifiable):
		return token.Claims{}, challenge(tenant, "[BearerReadAccessTokenFailed] Error validating token: the token or its signature is invalid.")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return token.Claims{}, challenge(tenant, "AKV10022: Invalid audience. Expected "+resource+", found: "+claims.Audience+".")
	case errors.Is(err, jwt.ErrTokenExpired):
		return token.Claims{}, challenge(tenant, "[TokenExpired] Error validating token: the token is expired.")
	}
	return token.Claims{}, challenge(tenant, "AKV10032: Invalid issuer. Expected "+token.IssuerURL(tenant)+", found "+claims.Issuer+".")
}

func challenge(tenant, message string) *wire.Error {
	e := wire.Refuse(http.StatusUnauthorized, "Unauthorized", "%s", message)
	e.Header = http.Header{"Www-Authenticate": {
		`Bearer authorization="https://login.microsoftonline.com/` + tenant + `", resource="` + resource + `"`,
	}}
	return e
}

func forbidden(claims token.Claims, scope, vault string) *wire.Error {
	return wire.Refuse(http.StatusForbidden, "Forbidden",
		"Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\nCaller: appid=%s;oid=%s;iss=%s\r\nAction: '%s'\r\nResource: '%s'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: null \r\nVault: %s;location=westeurope\r\n",
		claims.AppID, claims.ObjectID, claims.Issuer, state.ActionGetSecret, strings.ToLower(scope), vault)
}

type secretBody struct {
	Value       string           `json:"value"`
	ContentType string           `json:"contentType,omitempty"`
	ID          string           `json:"id"`
	Attributes  secretAttributes `json:"attributes"`
}

type secretAttributes struct {
	Enabled         bool   `json:"enabled"`
	Created         int64  `json:"created"`
	Updated         int64  `json:"updated"`
	RecoveryLevel   string `json:"recoveryLevel"`
	RecoverableDays int    `json:"recoverableDays"`
}

func encodeSecret(v state.SecretVersion, vault string) secretBody {
	return secretBody{
		Value: string(v.Value), ContentType: v.ContentType,
		ID: "https://" + vault + HostSuffix + "/secrets/" + v.Name + "/" + v.Version,
		Attributes: secretAttributes{
			Enabled: true, Created: v.Created.Unix(), Updated: v.Created.Unix(), RecoveryLevel: "Recoverable+Purgeable", RecoverableDays: 90,
		},
	}
}
