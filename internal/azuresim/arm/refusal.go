package arm

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// target is the resource that a request is about: its path, which ARM repeats in
// its messages as it came, and its type as ARM spells it.
type target struct {
	path, kind string
}

func (t target) group() string { return t.segment(4) }
func (t target) name() string  { return t.segment(8) }

func (t target) segment(i int) string { return strings.Split(t.path, "/")[i] }

// refusal puts a typed error of the state into ARM's code and words. Clients
// read the IDs out of some of these messages, so their shape is a contract.
func (t target) refusal(err error, claims token.Claims, as settings.Settings) error {
	if denied, ok := errors.AsType[*state.AuthorizationError](err); ok {
		return wire.Refuse(http.StatusForbidden, "AuthorizationFailed",
			"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials.",
			claims.AppID, claims.ObjectID, denied.Action, t.path)
	}
	if denied, ok := errors.AsType[*state.LinkedAuthorizationError](err); ok {
		return t.linkedAuthorizationFailed(claims, "'"+strings.Join(denied.IDs, ",")+"'")
	}
	if missing, ok := errors.AsType[*state.MissingIdentityError](err); ok {
		return t.failedIdentityOperation("BadRequest", "BadRequest", "Resource '"+strings.Join(missing.IDs, ",")+"' was not found.")
	}
	if poisoned, ok := errors.AsType[*state.PoisonError](err); ok {
		return t.poisoned(poisoned.Refusal, claims, as)
	}
	return t.refusalOfWrite(err)
}

func (t target) refusalOfWrite(err error) error {
	if stale, ok := errors.AsType[*state.PreconditionError](err); ok {
		return wire.Refuse(http.StatusPreconditionFailed, "PreconditionFailed",
			"The etag '%s' in the If-Match header does not match the etag '%s' of the resource '%s'.", stale.Given, stale.Present, t.name())
	}
	if block, ok := errors.AsType[*state.IdentityBlockError](err); ok {
		return wire.Refuse(http.StatusBadRequest, "InvalidParameter", "%s", block.Message)
	}
	switch {
	case errors.Is(err, state.ErrNotFound):
		return wire.Refuse(http.StatusNotFound, "ResourceNotFound",
			"The Resource '%s/%s' under resource group '%s' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix", t.kind, t.name(), t.group())
	case errors.Is(err, state.ErrDeleting):
		return wire.Refuse(http.StatusConflict, "OperationNotAllowed",
			"Operation 'Update' is not allowed on '%s' since it is marked for deletion. You can only retry the Delete operation (or wait for an ongoing one to complete).", t.name())
	case errors.Is(err, state.ErrBusy):
		return wire.Refuse(http.StatusConflict, "OperationNotAllowed",
			"The request failed due to conflict with a concurrent request. To resolve it, please refer to https://aka.ms/activitylog to get more details on the conflicting requests.")
	}
	return err
}

// authenticate checks the bearer token as ARM does.
func (s *Server) authenticate(call *wire.Call) (token.Claims, error) {
	tenant := s.State.Tenant()
	raw, ok := wire.Bearer(call.Request)
	if !ok {
		return token.Claims{}, unauthorized(tenant, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
	}
	claims, err := s.Tokens.Verify(raw, tenant, audiences()...)
	switch {
	case err == nil:
		return claims, nil
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenMalformed), errors.Is(err, jwt.ErrTokenUnverifiable):
		return token.Claims{}, unauthorized(tenant, "InvalidAuthenticationToken", "The access token is invalid.")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return token.Claims{}, unauthorized(tenant, "InvalidAuthenticationTokenAudience",
			"The access token has been obtained for wrong audience or resource '"+claims.Audience+"'. It should exactly match with one of the allowed audiences '"+strings.Join(audiences(), "','")+"'.")
	case errors.Is(err, jwt.ErrTokenExpired):
		return token.Claims{}, unauthorized(tenant, "ExpiredAuthenticationToken",
			"The access token expiry UTC time '"+claims.ExpiresAt.UTC().Format(time.RFC3339)+"' is earlier than current UTC time.")
	}
	return token.Claims{}, unauthorized(tenant, "InvalidAuthenticationToken", "The access token is from the wrong issuer, or is not valid yet.")
}

func unauthorized(tenant, code, message string) *wire.Error {
	e := wire.Refuse(http.StatusUnauthorized, code, "%s", message)
	e.Header = http.Header{"Www-Authenticate": {
		`Bearer authorization_uri="https://login.microsoftonline.com/` + tenant + `", error="invalid_token", error_description="` + message + `"`,
	}}
	return e
}
