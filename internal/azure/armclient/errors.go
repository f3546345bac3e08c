package armclient

import (
	"fmt"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// NotFoundError says that ARM does not know the resource.
type NotFoundError struct {
	ID      armid.ID
	Message string
}

// Error names the resource.
func (e *NotFoundError) Error() string {
	return fmt.Sprintf("ARM does not know %s: %s", e.ID, e.Message)
}

// DeletingError says that the resource is being deleted and takes no change.
type DeletingError struct {
	ID armid.ID
}

// Error names the resource.
func (e *DeletingError) Error() string { return fmt.Sprintf("%s is being deleted", e.ID) }

// ThrottledError says that ARM asks to wait, or would if the request were sent.
type ThrottledError struct {
	// After is how long from the answer on; never negative. Zero: ARM gave none.
	After time.Duration
	// Scope is what is throttled; empty if it is not known.
	Scope throttle.Scope
	// Own says that nothing was sent: the client keeps under ARM's limits.
	Own     bool
	Message string
}

// Error says how long to wait.
func (e *ThrottledError) Error() string {
	if e.Own {
		return e.Message
	}
	return fmt.Sprintf("ARM asks to wait %s: %s", e.After, e.Message)
}

// ConflictError says that another operation on the resource runs (409).
type ConflictError struct {
	ID      armid.ID
	Message string
}

// Error names the resource.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("another operation on %s runs: %s", e.ID, e.Message)
}

// PreconditionFailedError says that the resource is no longer as it was
// observed (412).
type PreconditionFailedError struct {
	ID armid.ID
}

// Error names the resource.
func (e *PreconditionFailedError) Error() string {
	return fmt.Sprintf("%s was changed by somebody else since it was observed", e.ID)
}

// BadIdentitiesError says that Azure refuses to attach identities. ARM fails the
// whole request for one of them.
type BadIdentitiesError struct {
	// IDs are those of the request that ARM named; empty if it named none.
	IDs []armid.ID
	// Code and Message are ARM's own.
	Code, Message string
}

// Error names the identities as far as they are known.
func (e *BadIdentitiesError) Error() string {
	names := make([]string, 0, len(e.IDs))
	for _, id := range e.IDs {
		names = append(names, id.String())
	}
	if len(names) == 0 {
		names = append(names, "identities that it does not name")
	}
	return fmt.Sprintf("ARM refuses %s: %s: %s", strings.Join(names, ", "), e.Code, e.Message)
}

// DeniedError says that the controller's own identity lacks a right.
type DeniedError struct {
	// Action is the right that is missing, on Scope, an ARM ID.
	Action, Scope string
	// Role is the built-in role that grants it; empty if it is none of those that
	// the controller needs.
	Role    string
	Message string
}

// Error says which right is missing where.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("the controller's identity may not %s on %s: %s", e.Action, e.Scope, e.Message)
}

// UnavailableError says that ARM, the way to it or the controller's own token
// cannot be had now. Trying again later is right.
type UnavailableError struct {
	// After is how long ARM asks to wait; zero if it does not say.
	After time.Duration
	Err   error
}

// Error says what failed.
func (e *UnavailableError) Error() string { return "ARM is not available: " + e.Err.Error() }

// Unwrap returns what failed.
func (e *UnavailableError) Unwrap() error { return e.Err }

// NotStartedError wraps a failure of which it is certain that ARM did nothing:
// it refused the request at once. Without it, a failed change may have been
// carried out, in part or whole.
type NotStartedError struct {
	Err error
}

// Error is the wrapped error's.
func (e *NotStartedError) Error() string { return e.Err.Error() }

// Unwrap returns the failure itself.
func (e *NotStartedError) Unwrap() error { return e.Err }
