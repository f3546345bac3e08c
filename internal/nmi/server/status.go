package server

import (
	"math"
	"net/http"
	"strconv"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// answer is how a Reason looks on the wire.
type answer struct {
	status int
	// code is the field error of the body.
	code string
	// after is the Retry-After if the refusal itself says none; zero sends none.
	after time.Duration
	// notYet says that the same request may be answered by itself soon.
	notYet bool
}

// notYetAfter is the Retry-After of compatibility mode.
const notYetAfter = 20 * time.Second

// answerTo is the one table from Reason to answer. Clients of the metadata
// service repeat 404, 410, 429 and 5xx and give up at 400, 401 and 403, so that
// what will not mend itself must be one of these:
//
//	a mistake in the request                400
//	an identity that nobody knows           400, as the service says it
//	forbidden, or not possible here         403
//	not there yet                           404
//	being updated, back within 70 seconds   410, for which clients wait that long
//	throttled, or too much asked            429
//	the agent, or what it needs, is down    503
func answerTo(reason v1.Reason) answer {
	switch reason {
	case v1.ReasonInvalidRequest, v1.ReasonForbiddenHeader,
		v1.ReasonNotSelected, v1.ReasonUnknownIdentity, v1.ReasonUpstreamRefused:
		return answer{status: http.StatusBadRequest, code: "invalid_request"}
	case v1.ReasonNotBound, v1.ReasonNamespaceMismatch, v1.ReasonInvalidBinding, v1.ReasonInvalidIdentity,
		v1.ReasonNameConflict, v1.ReasonUnsupportedIdentityType, v1.ReasonBlocked,
		v1.ReasonInvalidSecret, v1.ReasonSecretForbidden, v1.ReasonAuthorityForbidden,
		v1.ReasonCallerMismatch, v1.ReasonCallerUnproven:
		return answer{status: http.StatusForbidden, code: "forbidden"}
	case v1.ReasonNotServed:
		return answer{status: http.StatusNotFound, code: "not_found"}
	case v1.ReasonMethodNotAllowed:
		return answer{status: http.StatusMethodNotAllowed, code: "method_not_allowed"}
	case v1.ReasonNotAssigned, v1.ReasonNotAttached, v1.ReasonNoBinding, v1.ReasonIdentityNotFound, v1.ReasonCallerUnknown, v1.ReasonSecretNotFound:
		return answer{status: http.StatusNotFound, code: "not_found", notYet: true}
	case v1.ReasonUpstreamUpdating:
		return answer{status: http.StatusGone, code: "gone"}
	case v1.ReasonUpstreamThrottled, v1.ReasonLimited:
		return answer{status: http.StatusTooManyRequests, code: "too_many_requests", after: time.Second}
	case v1.ReasonUpstreamUnavailable, v1.ReasonCallerAmbiguous:
		return answer{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", after: time.Second}
	case v1.ReasonNotReady, v1.ReasonStale:
		return answer{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", after: 5 * time.Second}
	}
	return answer{status: http.StatusInternalServerError, code: "server_error"}
}

// refuse writes the JSON that the metadata service would. Compatibility mode is
// about pods' token requests: the node's own programs were never told to wait.
func (s *Server) refuse(w http.ResponseWriter, refused *refusal.Error, route audit.Route) {
	a := answerTo(refused.Reason)
	if a.notYet && s.options.RetryAfter && route != audit.RouteHost {
		a.status, a.code, a.after = http.StatusServiceUnavailable, "temporarily_unavailable", notYetAfter
	}
	if refused.After > 0 {
		a.after = refused.After
	}
	body := imds.AppendError(nil, a.code, describe(refused))
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	if a.after > 0 {
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(a.after.Seconds()))))
	}
	if a.status == http.StatusMethodNotAllowed {
		header.Set("Allow", http.MethodGet)
	}
	if refused.Reason == v1.ReasonCallerMismatch {
		// Whoever opened the connection is not who it was taken for.
		header.Set("Connection", "close")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(body) //nolint:gosec // JSON, encoded by us; a caller that left needs no answer
}

// describe adds the Reason to the message, so that it can be looked up. Mistakes
// in the request read as the service words them.
func describe(refused *refusal.Error) string {
	switch refused.Reason {
	case v1.ReasonInvalidRequest, v1.ReasonForbiddenHeader:
		return refused.Message
	}
	return refused.Message + " (reason " + string(refused.Reason) + ")"
}
