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
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armtext"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// ARM's codes for a request that fails for one of its identities. Both also
// come for other causes.
const (
	codeFailedIdentity = "FailedIdentityOperation"
	codeLinked         = "LinkedAuthorizationFailed"
)

// request is what a failure is to be told of.
type request struct {
	id     armid.ID
	action string
	// add holds the identities that the request attaches.
	add []armid.ID
}

// classify gives a failure of the SDK its type, whether ARM refused the request
// or the operation that it had begun. The error's own text is never looked at;
// ARM's message is, for what ARM says nowhere else (see package armtext).
func (r request) classify(err error) error {
	var auth *azidentity.AuthenticationFailedError
	var paced *throttle.NotBeforeError
	var response *azcore.ResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &paced):
		return &ThrottledError{After: paced.After, Scope: paced.Scope, Own: !paced.Asked, Message: paced.Error()}
	case errors.As(err, &auth):
		return &UnavailableError{Err: err}
	case errors.As(err, &response):
		return r.ofResponse(response)
	}
	return &UnavailableError{Err: err}
}

// kind is what an answer is, before one looks at whom it is about.
type kind int

const (
	kindOther kind = iota
	kindNotFound
	kindThrottled
	kindConflict
	kindPrecondition
	kindDeleting
	kindDenied
	kindDown
)

// kindOf reads ARM's code, which an operation's failure has alone, and then the
// status.
func kindOf(status int, code string) kind {
	switch strings.ToLower(code) {
	case "toomanyrequests", "subscriptionrequeststhrottled", "resourcerequeststhrottled", "tenantrequeststhrottled":
		return kindThrottled
	case "resourcebeingdeleted", "resourcegroupbeingdeleted", "resourcedeleting", "resourcegroupdeletionblocked":
		return kindDeleting
	case "operationpreempted", "anotheroperationinprogress", "conflictingconcurrentwritenotallowed", "conflictinguserinput", "conflict":
		return kindConflict
	case "preconditionfailed", "conditionnotmet":
		return kindPrecondition
	case "resourcenotfound", "resourcegroupnotfound", "subscriptionnotfound", "parentresourcenotfound":
		return kindNotFound
	case "authorizationfailed", "linkedauthorizationfailed", "linkedaccesscheckfailed", "invalidauthenticationtoken":
		return kindDenied
	case "internalservererror", "internalexecutionerror", "internaloperationerror", "internalerror", "serverbusy", "operationtimedout", "servertimeout":
		return kindDown
	}
	return kindOfStatus(status)
}

func kindOfStatus(status int) kind {
	switch {
	case status == http.StatusTooManyRequests:
		return kindThrottled
	case status == http.StatusConflict:
		return kindConflict
	case status == http.StatusPreconditionFailed:
		return kindPrecondition
	case status == http.StatusNotFound:
		return kindNotFound
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return kindDenied
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		return kindDown
	}
	return kindOther
}

func (r request) ofResponse(response *azcore.ResponseError) error {
	code, message := response.ErrorCode, messageOf(response)
	var limits throttle.Answer
	if raw := response.RawResponse; raw != nil {
		limits = throttle.ReadAnswer(response.StatusCode, raw.Header, time.Now())
	}
	switch is := causeOf(kindOf(response.StatusCode, code), code, message); is {
	case kindThrottled:
		return &ThrottledError{After: limits.After, Scope: firstOf(limits.Empty), Message: message}
	case kindConflict:
		return &ConflictError{ID: r.id, Message: message}
	case kindPrecondition:
		return &PreconditionFailedError{ID: r.id}
	case kindDeleting:
		return &DeletingError{ID: r.id}
	case kindOther, kindNotFound, kindDenied:
		if err := r.ofRequest(is, code, message); err != nil {
			return err
		}
	case kindDown:
	}
	return &UnavailableError{After: limits.After, Err: &answerError{status: response.StatusCode, code: code, message: message}}
}

// causeOf is what an answer is when the service that keeps the identities has
// answered ARM, and ARM passes it on as an identity's fault.
func causeOf(is kind, code, message string) kind {
	if code != codeFailedIdentity {
		return is
	}
	switch armtext.CauseOf(message) {
	case armtext.Throttled:
		return kindThrottled
	case armtext.Down:
		return kindDown
	case armtext.None:
	}
	return is
}

func firstOf(scopes []throttle.Scope) throttle.Scope {
	if len(scopes) == 0 {
		return ""
	}
	return scopes[0]
}

// ofRequest returns an error about what the request asks for; nil if it is none.
func (r request) ofRequest(is kind, code, message string) error {
	if err := r.ofIdentities(code, message); err != nil {
		return err
	}
	switch is { //nolint:exhaustive // the others are no refusals of what is asked
	case kindNotFound:
		return &NotFoundError{ID: r.id, Message: message}
	case kindDenied:
		return r.denied(message)
	}
	return nil
}

// ofIdentities returns an error about identities of the request; nil if the
// message is about something else. Where ARM gives a code of identities and
// names none, it may be any of them; where it names others only, such as one
// that is on the resource already, it is none.
func (r request) ofIdentities(code, message string) error {
	named, others := armtext.Named(message, r.add)
	switch {
	case len(named) > 0:
		return &BadIdentitiesError{IDs: named, Code: code, Message: message}
	case len(r.add) == 0 || others:
		return nil
	case code == codeFailedIdentity, code == codeLinked && armtext.OfIdentities(message):
		return &BadIdentitiesError{Code: code, Message: message}
	}
	return nil
}

// denied says which right is missing where: what ARM names, else what was asked
// for.
func (r request) denied(message string) error {
	out := &DeniedError{Action: r.action, Scope: r.id.String(), Message: message}
	if action, scopes := armtext.Missing(message); action != "" && !strings.EqualFold(scopes[0], out.Scope) {
		out.Action, out.Scope = action, strings.Join(scopes, ",")
	}
	out.Role = armtext.Role(out.Action)
	return out
}

// answerError is an answer of ARM's that has no type of its own.
type answerError struct {
	status        int
	code, message string
}

func (e *answerError) Error() string {
	return "ARM answered " + strconv.Itoa(e.status) + " " + e.code + ": " + e.message
}

// messageOf returns error.message of the body, with those of its details, or
// the status line.
func messageOf(response *azcore.ResponseError) string {
	if response.RawResponse == nil {
		return response.ErrorCode
	}
	type answered struct {
		Message string `json:"message"`
	}
	var body struct {
		Error struct {
			answered
			Details []answered `json:"details"`
		} `json:"error"`
	}
	payload, err := runtime.Payload(response.RawResponse)
	if err != nil || json.Unmarshal(payload, &body) != nil || body.Error.Message == "" {
		return response.RawResponse.Status
	}
	words := []string{body.Error.Message}
	for _, detail := range body.Error.Details {
		if detail.Message != "" && !slices.Contains(words, detail.Message) {
			words = append(words, detail.Message)
		}
	}
	return strings.Join(words, " ")
}
