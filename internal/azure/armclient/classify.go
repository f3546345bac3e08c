package armclient

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// ARM's codes for a request that fails for one of its identities. Both also
// come for other causes, so that the message must name one of the request's.
func identityCodes() []string {
	return []string{"FailedIdentityOperation", "LinkedAuthorizationFailed"}
}

// request is what a failure is to be told of.
type request struct {
	id     armid.ID
	action string
	// add holds the identities that the request attaches.
	add []armid.ID
}

// classify gives a failure of the SDK its type. The error's text is never
// looked at, but for which of the request's identities ARM's message names:
// ARM says it nowhere else.
func (r request) classify(err error) error {
	var auth *azidentity.AuthenticationFailedError
	var response *azcore.ResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &auth):
		return &UnavailableError{Err: err}
	case errors.As(err, &response):
		return r.ofResponse(response)
	}
	return &UnavailableError{Err: err}
}

func (r request) ofResponse(response *azcore.ResponseError) error {
	code, message := response.ErrorCode, messageOf(response)
	if named := r.named(message); len(named) > 0 && response.StatusCode != http.StatusTooManyRequests {
		return &BadIdentitiesError{IDs: named, Code: code, Message: message}
	}
	if slices.Contains(identityCodes(), code) && len(r.add) > 0 {
		return &BadIdentitiesError{Code: code, Message: message}
	}
	switch response.StatusCode {
	case http.StatusNotFound:
		return &NotFoundError{ID: r.id, Message: message}
	case http.StatusTooManyRequests:
		return &ThrottledError{After: retryAfter(response.RawResponse), Message: message}
	case http.StatusConflict:
		return &ConflictError{ID: r.id, Message: message}
	case http.StatusPreconditionFailed:
		return &PreconditionFailedError{ID: r.id}
	case http.StatusForbidden, http.StatusUnauthorized:
		return &DeniedError{Action: r.action, Scope: r.id.String(), Message: message}
	}
	return &UnavailableError{After: retryAfter(response.RawResponse), Err: &answerError{status: response.StatusCode, code: code, message: message}}
}

// answerError is an answer of ARM's that has no type of its own.
type answerError struct {
	status        int
	code, message string
}

func (e *answerError) Error() string {
	return "ARM answered " + strconv.Itoa(e.status) + " " + e.code + ": " + e.message
}

// named returns those of the request's identities that the message names, in any
// case.
func (r request) named(message string) []armid.ID {
	folded := strings.ToLower(message)
	var out []armid.ID
	for _, id := range r.add {
		if mentions(folded, id.String()) {
			out = append(out, id)
		}
	}
	return out
}

// mentions reports whether the text holds the ID, and not only a longer one
// that begins with it. An identity's name holds letters, digits, - and _.
func mentions(text, id string) bool {
	for rest := text; ; {
		_, after, found := strings.Cut(rest, id)
		if !found {
			return false
		}
		if after == "" || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_", rune(after[0])) {
			return true
		}
		rest = after
	}
}

// messageOf returns error.message of the body, or the status line.
func messageOf(response *azcore.ResponseError) string {
	if response.RawResponse == nil {
		return response.ErrorCode
	}
	var body struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	payload, err := runtime.Payload(response.RawResponse)
	if err == nil && json.Unmarshal(payload, &body) == nil && body.Error.Message != "" {
		return body.Error.Message
	}
	return response.RawResponse.Status
}

// retryAfter reads Retry-After in seconds or as a date. What it cannot read and
// what lies in the past is zero.
func retryAfter(response *http.Response) time.Duration {
	if response == nil {
		return 0
	}
	value := response.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(date))
	}
	return 0
}
