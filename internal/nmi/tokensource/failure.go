package tokensource

import (
	"errors"
	"net/http"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Class sorts the failures of sources by how long they stay true. The set is
// closed.
type Class string

// The classes.
const (
	// NotFound: the identity, or its Secret, is not there. It can come at any
	// moment.
	NotFound Class = "not_found"
	// Forbidden: the credential is wrong, or must not be used so.
	Forbidden Class = "forbidden"
	// BadRequest: nobody knows the resource that was asked for.
	BadRequest Class = "bad_request"
	// Throttled: upstream asked to wait.
	Throttled Class = "throttled"
	// Unavailable: upstream is down, or being updated.
	Unavailable Class = "unavailable"
	// Passing failures say nothing of the next request: the caller left, or there
	// was no turn for it.
	Passing Class = "passing"
)

// ClassOf returns the class of an error of a source.
func ClassOf(err error) Class {
	refused := refusal.Of(err)
	switch refused.Reason {
	case v1.ReasonUpstreamRefused:
		return classOfRefusal(refused)
	case v1.ReasonSecretNotFound:
		return NotFound
	case v1.ReasonInvalidSecret, v1.ReasonSecretForbidden, v1.ReasonAuthorityForbidden:
		return Forbidden
	case v1.ReasonUpstreamThrottled:
		return Throttled
	case v1.ReasonUpstreamUnavailable, v1.ReasonUpstreamUpdating, v1.ReasonNotReady, v1.ReasonInternalError:
		return Unavailable
	}
	return Passing
}

// classOfRefusal tells refusals of the metadata service apart. It says that an
// identity is missing by its words alone.
func classOfRefusal(refused *refusal.Error) Class {
	service, ok := errors.AsType[*imds.RefusedError](refused)
	switch {
	case !ok, service.Status == http.StatusUnauthorized, service.Status == http.StatusForbidden:
		return Forbidden
	case strings.Contains(service.Description, imds.IdentityNotFound):
		return NotFound
	}
	return BadRequest
}

// Updating reports whether an error says that upstream is being updated, which is
// worth asking again for within one request.
func Updating(err error) bool {
	return err != nil && refusal.Of(err).Reason == v1.ReasonUpstreamUpdating
}

// Life is how long a failure is remembered. What a person may be mending right
// now is asked again soon; what only another program can change, later.
func (c Class) Life(after time.Duration) time.Duration {
	switch c {
	case NotFound:
		return 5 * time.Second
	case Forbidden:
		return 15 * time.Second
	case BadRequest:
		return 30 * time.Second
	case Throttled:
		return min(max(after, time.Second), 30*time.Second)
	case Unavailable:
		return time.Second
	case Passing:
	}
	return 0
}
