// Package refusal holds the one error type by which the agent's stages say that
// a pod does not get what it asked for, and why.
//
// It is pure and a leaf. It must not know HTTP: which status a Reason becomes is
// the server's table.
package refusal

import (
	"errors"
	"fmt"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Error is a refusal.
type Error struct {
	// Reason is the class, for machines.
	Reason v1.Reason
	// Message is for the person who runs the pod: what is wrong, and what to do.
	// It goes to the pod, so it never holds a secret.
	Message string
	// After is how long to wait before asking again; zero leaves that to the
	// Reason.
	After time.Duration
	// Err is the cause, for the log only; it may be nil.
	Err error
}

// New returns a refusal with a formatted message.
func New(reason v1.Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error returns the Reason and the message.
func (e *Error) Error() string { return string(e.Reason) + ": " + e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Of returns err as a refusal. What is none becomes an InternalError whose
// cause is kept for the log.
func Of(err error) *Error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	return &Error{Reason: v1.ReasonInternalError, Message: "the agent failed to answer; its log says why", Err: err}
}
