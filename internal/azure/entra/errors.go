package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

// RefusedError is an answer that asking again will not change: the credential,
// the application, the tenant or the resource is wrong.
type RefusedError struct {
	Status int
	// Codes are Entra's numbers, without "AADSTS".
	Codes []int
	// Description is Entra's own, on one line and without its trace IDs.
	Description string
}

// Error says what Entra said.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("Entra refused the request (status %d): %s", e.Status, e.Description)
}

// ThrottledError is an answer 429.
type ThrottledError struct {
	// After is how long Entra asked to wait; zero if it did not say.
	After time.Duration
}

// Error says how long to wait.
func (e *ThrottledError) Error() string {
	return fmt.Sprintf("Entra throttles this node (retry after %s)", e.After)
}

// UnavailableError is no answer, or one that makes no sense.
type UnavailableError struct {
	// Status is zero if there was no answer.
	Status int
	Err    error
}

// Error says what happened.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("Entra is not available (status %d): %v", e.Status, e.Err)
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// InvalidError is a request that was not sent, because no answer to it could be a
// token.
type InvalidError struct {
	Err error
}

// Error says what is wrong.
func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *InvalidError) Unwrap() error { return e.Err }

func fromResponse(response *http.Response, body []byte) error {
	var answer struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		Codes       []int  `json:"error_codes"`
	}
	parseErr := json.Unmarshal(body, &answer)
	switch status := response.StatusCode; {
	case status == http.StatusTooManyRequests:
		return &ThrottledError{After: imds.RetryAfter(response.Header)}
	case status >= 400 && status < 500 && status != http.StatusRequestTimeout && parseErr == nil && answer.Error != "":
		return &RefusedError{Status: status, Codes: answer.Codes, Description: shorten(answer.Error, answer.Description)}
	default:
		return &UnavailableError{Status: status, Err: errors.New("the answer is not one of Entra's")}
	}
}

// maxDescription bounds what is shown of Entra's words, in bytes.
const maxDescription = 400

func shorten(code, description string) string {
	for _, end := range []string{" Trace ID:", "\r\n", "\n"} {
		description, _, _ = strings.Cut(description, end)
	}
	if description == "" {
		description = code
	}
	if len(description) > maxDescription {
		description = description[:maxDescription] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(description, "?"))
}
