package arm

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// throttledFor is what the service behind ARM asks for when it throttles.
const throttledFor = 20 * time.Second

// poisoned is the answer about identities that ARM was told to refuse, in the
// request or as the error of its operation.
func (t target) poisoned(r poison.Refusal, claims token.Claims, as settings.Settings) *wire.Error {
	names := r.Names()
	switch {
	case r.Kind == poison.Throttled:
		after := wholeSeconds(as.Compress(throttledFor))
		e := t.failedIdentityOperation("429", "429",
			fmt.Sprintf("Request is temporarily throttled because resource %s has issued too many requests. Retry after %s seconds.", t.path, after))
		e.Status, e.Header = http.StatusTooManyRequests, http.Header{"Retry-After": {after}}
		return e
	case r.Kind == poison.LinkedAuthorizationFailed && names == "":
		return wire.Refuse(http.StatusForbidden, poison.LinkedAuthorizationFailed,
			"The client has permission to perform action '%s' on scope '%s', however the current tenant is not authorized to access a linked subscription.", assignAction, t.path)
	case r.Kind == poison.LinkedAuthorizationFailed:
		return t.linkedAuthorizationFailed(claims, names)
	case names == "":
		return t.failedIdentityOperation("BadRequest", "BadRequest", "Bad request.")
	}
	return t.failedIdentityOperation("BadRequest", "BadRequest", "Resource "+names+" was not found.")
}

const assignAction = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"

// linkedAuthorizationFailed names the identities that a principal may not assign.
func (t target) linkedAuthorizationFailed(claims token.Claims, names string) *wire.Error {
	return wire.Refuse(http.StatusForbidden, poison.LinkedAuthorizationFailed,
		"The client '%s' with object id '%s' has permission to perform action '%s/write' on scope '%s'; however, it does not have permission to perform action(s) '%s' on the linked scope(s) %s (respectively) or the linked scope(s) are invalid.",
		claims.AppID, claims.ObjectID, t.kind, t.path, assignAction, names)
}

// failedIdentityOperation wraps the answer of the service behind ARM as ARM does.
func (t target) failedIdentityOperation(status, code, message string) *wire.Error {
	return wire.Refuse(http.StatusBadRequest, poison.FailedIdentityOperation,
		"Identity operation for resource '%s' failed with error 'Failed to perform resource identity operation. Status: '%s'. Response: '{\"error\":{\"code\":\"%s\",\"message\":\"%s\"}}'.'.",
		t.path, status, code, strings.ReplaceAll(message, `"`, `\"`))
}
