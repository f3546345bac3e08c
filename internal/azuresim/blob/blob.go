// Package blob answers as the blob service of the simulated tenant's storage
// accounts: it lists the blobs of a container to callers whose token and role
// allow it.
//
// It must not write or hand out contents: blobs come with the state document,
// and reading one is not simulated.
package blob

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// HostSuffix is what follows an account's name in its host name.
const HostSuffix = ".blob.core.windows.net"

// resource is what tokens for Storage are asked for.
const resource = "https://storage.azure.com"

// Server is the surface of all accounts.
type Server struct {
	State  *state.State
	Tokens *token.Issuer
	Now    func() time.Time // the clock of the errors' times
}

// versions are the values of x-ms-version that are served: the one of azblob
// v1.8.0 and some before it, back to the first that takes bearer tokens.
func versions() []string {
	return []string{"2017-11-09", "2018-11-09", "2019-12-12", "2020-10-02", "2021-12-02", "2023-11-03", "2024-11-04", "2026-06-06"}
}

// Surface returns the blob service for [wire.Recorder.Handler].
func (s *Server) Surface() wire.Surface {
	return wire.Surface{
		Name: journal.Storage, Serve: s.serve, Render: s.render,
		Encoding: wire.Encoding{ContentType: "application/xml", Marshal: marshal},
	}
}

func (s *Server) serve(call *wire.Call) (wire.Reply, error) {
	account := accountName(call.Host)
	accountID, ok := s.State.StorageAccountID(account)
	if !ok {
		return wire.Reply{}, wire.Unexpected(http.StatusNotFound, "AccountNotFound", "There is no storage account '%s'.", account)
	}
	container, err := route(call)
	if err != nil {
		return wire.Reply{}, err
	}
	if err := checkVersion(call); err != nil {
		return wire.Reply{}, err
	}
	claims, err := s.authenticate(call, account)
	if err != nil {
		return wire.Reply{}, err
	}
	call.Entry.Principal = claims.ObjectID
	asked, err := parsePage(call)
	if err != nil {
		return wire.Reply{}, err
	}
	scope := accountID + "/blobServices/default/containers/" + container
	if s.State.Authorize(claims.ObjectID, state.ActionReadBlobs, scope) != nil {
		return wire.Reply{}, wire.Refuse(http.StatusForbidden, "AuthorizationPermissionMismatch",
			"This request is not authorized to perform this operation using this permission.")
	}
	blobs, err := s.State.Blobs(account, container)
	if errors.Is(err, state.ErrNotFound) {
		return wire.Reply{}, wire.Refuse(http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	}
	if err != nil {
		return wire.Reply{}, err
	}
	header := http.Header{"X-Ms-Version": {call.Header.Get("x-ms-version")}, "X-Ms-Request-Id": {uuid.NewString()}}
	return wire.Reply{Header: header, Body: asked.of(blobs, account, container)}, nil
}

func accountName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ":")
	return strings.TrimSuffix(host, HostSuffix)
}

// route takes GET /CONTAINER?restype=container&comp=list and nothing else.
func route(call *wire.Call) (container string, err error) {
	container = strings.TrimPrefix(call.URL.Path, "/")
	query := call.URL.Query()
	if container == "" || strings.Contains(container, "/") || query.Get("restype") != "container" || query.Get("comp") != "list" {
		return "", wire.Unexpected(http.StatusBadRequest, "InvalidUri", "Only the blobs of a container are listed here: the path '%s' is not simulated with this query.", call.URL.Path)
	}
	if call.Method != http.MethodGet {
		return "", wire.Unexpected(http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.")
	}
	return container, nil
}

func checkVersion(call *wire.Call) error {
	version := call.Header.Get("x-ms-version")
	if version == "" {
		return wire.Unexpected(http.StatusBadRequest, "MissingRequiredHeader", "A request with a bearer token must have the header x-ms-version.")
	}
	if !slices.Contains(versions(), version) {
		return wire.Unexpected(http.StatusBadRequest, "InvalidHeaderValue",
			"The value for one of the HTTP headers is not in the correct format: x-ms-version '%s' is none of %s.", version, strings.Join(versions(), ", "))
	}
	return nil
}

// unauthenticated is what Storage says to a caller whom it does not know.
const unauthenticated = "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."

// authenticate answers a caller without a good token with the challenge from
// which SDKs learn the tenant and the resource.
func (s *Server) authenticate(call *wire.Call, account string) (token.Claims, error) {
	tenant := s.State.Tenant()
	raw, ok := wire.Bearer(call.Request)
	if !ok {
		return token.Claims{}, challenge(tenant, "NoAuthenticationInformation", "")
	}
	claims, err := s.Tokens.Verify(raw, tenant, resource, resource+"/", "https://"+account+HostSuffix, "https://"+account+HostSuffix+"/")
	if err != nil {
		return token.Claims{}, challenge(tenant, "InvalidAuthenticationInfo", authenticationDetail(err))
	}
	return claims, nil
}

func authenticationDetail(err error) string {
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "AuthenticationInfo is not given in the correct format. Check the value of Authorization header."
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return "Signature validation failed. Signature key is not valid."
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "Audience validation failed. Audience did not match."
	case errors.Is(err, jwt.ErrTokenExpired), errors.Is(err, jwt.ErrTokenNotValidYet):
		return "Lifetime validation failed. The token is expired."
	}
	return "Issuer validation failed. Issuer did not match."
}

func challenge(tenant, code, detail string) *wire.Error {
	e := wire.Refuse(http.StatusUnauthorized, code, unauthenticated)
	e.Detail = detail
	e.Header = http.Header{"Www-Authenticate": {
		"Bearer authorization_uri=https://login.microsoftonline.com/" + tenant + "/oauth2/authorize resource_id=" + resource,
	}}
	return e
}
