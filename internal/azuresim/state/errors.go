package state

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// ErrNotFound is wrapped by errors about a thing that a call names and that is
// not there.
var ErrNotFound = errors.New("not found")

// ErrInvalid is wrapped by errors about a document or call that cannot be right.
var ErrInvalid = errors.New("invalid")

// ErrDeleting is wrapped by errors about a resource whose deletion has begun.
var ErrDeleting = errors.New("it is being deleted")

// ErrBusy is wrapped by errors about a resource with an operation running.
var ErrBusy = errors.New("another operation is in progress")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// AuthorizationError says that a principal lacks an action at a scope.
type AuthorizationError struct {
	Principal, Action, Scope string
}

func (e *AuthorizationError) Error() string {
	return fmt.Sprintf("%s may not %s at %s", e.Principal, e.Action, e.Scope)
}

// LinkedAuthorizationError says that a principal may write a resource, but may
// not assign the identities whose IDs are named.
type LinkedAuthorizationError struct {
	Principal string
	IDs       []string // as ARM spells them
}

func (e *LinkedAuthorizationError) Error() string {
	return fmt.Sprintf("%s may not assign %s", e.Principal, strings.Join(e.IDs, ", "))
}

// MissingIdentityError names identities that do not exist, as ARM spells them.
type MissingIdentityError struct {
	IDs []string
}

func (e *MissingIdentityError) Error() string {
	return "no identity " + strings.Join(e.IDs, ", ")
}

// PoisonError says that ARM refuses identities because it was told to.
type PoisonError struct {
	poison.Refusal
}

func (e *PoisonError) Error() string {
	return e.Kind + " of " + strings.Join(e.IDs, ", ")
}

// PreconditionError says that If-Match names another version than the present.
type PreconditionError struct {
	Given, Present string
}

func (e *PreconditionError) Error() string {
	return fmt.Sprintf("etag %s is not the present %s", e.Given, e.Present)
}

// IdentityBlockError says why an identity block is refused as a whole.
type IdentityBlockError struct {
	Message string
}

func (e *IdentityBlockError) Error() string { return e.Message }

// The reasons for which IMDS has no identity for a request.
var (
	ErrIdentityNotFound = errors.New("identity not found")
	ErrSeveral          = errors.New("several user-assigned identities and none asked for")
)
