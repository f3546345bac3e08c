package imds

import (
	"encoding/json"
	"fmt"
	"time"
)

// IdentityNotFound is the description that the service gives when the identity
// asked for is not attached to the machine. Programs look for these words.
const IdentityNotFound = "Identity not found"

// AppendError appends the JSON object that the service answers errors with.
func AppendError(dst []byte, code, description string) []byte {
	dst = appendField(append(dst, '{'), "error", code)
	dst = appendField(append(dst, ','), "error_description", description)
	return append(dst, '}')
}

// RefusedError is an answer that asking again will not change: the identity is
// not attached to the machine, or the resource is unknown to Entra.
type RefusedError struct {
	Status            int
	Code, Description string
}

// Error says what the service said.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("the metadata service refused the request (status %d): %s: %s", e.Status, e.Code, e.Description)
}

// ThrottledError is an answer 429.
type ThrottledError struct {
	// After is how long the service asked to wait; zero if it did not say.
	After time.Duration
}

// Error says how long to wait.
func (e *ThrottledError) Error() string {
	return fmt.Sprintf("the metadata service throttles this node (retry after %s)", e.After)
}

// UpdatingError is an answer 404 or 410: the service is being updated and is
// back within 70 seconds.
type UpdatingError struct {
	Status int
}

// Error names the status.
func (e *UpdatingError) Error() string {
	return fmt.Sprintf("the metadata service is being updated (status %d)", e.Status)
}

// UnavailableError is no answer, or one that makes no sense.
type UnavailableError struct {
	// Status is zero if there was no answer.
	Status int
	Err    error
}

// Error says what happened.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("the metadata service is not available (status %d): %v", e.Status, e.Err)
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

func parseError(body []byte) (code, description string) {
	var wire struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &wire); err != nil || wire.Error == "" {
		return "unknown", "the answer explains nothing"
	}
	return wire.Error, wire.Description
}
