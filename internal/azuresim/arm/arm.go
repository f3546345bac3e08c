// Package arm answers as Azure Resource Manager does for virtual machines and
// their scale sets: GET, PATCH of the identity block, and the operations that
// PATCH starts.
//
// A request becomes one call of the state; its typed errors become ARM's codes
// and messages here; it must not decide anything itself. Other verbs and other
// fields are refused as unexpected until something needs them.
package arm

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// Host is ARM's host name in the public cloud.
const Host = "management.azure.com"

// Server is the ARM surface.
type Server struct {
	State  *state.State
	Tokens *token.Issuer
	Meter  *throttle.Meter // counts requests, where the settings limit them
}

// apiVersions are those of Microsoft.Compute that are served: the one of
// armcompute v7.3.0.
func apiVersions() []string { return []string{"2025-04-01"} }

// audiences are the resources whose tokens ARM takes.
func audiences() []string {
	return []string{
		"https://management.core.windows.net/", "https://management.core.windows.net",
		"https://management.azure.com/", "https://management.azure.com",
	}
}

// Surface returns ARM for [wire.Recorder.Handler].
func (s *Server) Surface() wire.Surface {
	return wire.Surface{Name: journal.ARM, Serve: s.serve, Render: render, Headers: headers}
}

func headers() http.Header {
	id := uuid.NewString()
	return http.Header{
		"X-Ms-Request-Id": {id}, "X-Ms-Correlation-Request-Id": {id},
		"Strict-Transport-Security": {"max-age=31536000; includeSubDomains"}, "X-Content-Type-Options": {"nosniff"},
	}
}

func render(_ *wire.Call, e *wire.Error) any {
	type detail struct {
		Code    string `json:"code"`
		Target  string `json:"target,omitempty"`
		Message string `json:"message"`
	}
	var body struct {
		Error struct {
			detail
			Details []detail `json:"details,omitempty"`
		} `json:"error"`
	}
	body.Error.Code, body.Error.Message = e.Code, e.Message
	if e.Target != "" {
		body.Error.Details = []detail{{Code: "TooManyRequests", Target: e.Target, Message: e.Detail}}
	}
	return body
}

// serve authenticates before it says that a route is unknown, as ARM does, but
// the journal hears of the route in any case.
func (s *Server) serve(call *wire.Call) (wire.Reply, error) {
	route, routeErr := s.route(call)
	if routeErr != nil {
		call.Entry.Unexpected, call.Entry.Detail = true, routeErr.Message
	}
	claims, err := s.authenticate(call)
	if err != nil {
		return wire.Reply{}, err
	}
	call.Entry.Principal = claims.ObjectID
	if routeErr != nil {
		return wire.Reply{}, routeErr
	}
	if err := checkVersion(call); err != nil {
		return wire.Reply{}, err
	}
	remaining, err := s.charge(call, claims, route.cost)
	if err != nil {
		return wire.Reply{}, err
	}
	reply, err := route.serve(call, claims)
	return withHeaders(reply, err, remaining)
}

type handler func(*wire.Call, token.Claims) (wire.Reply, error)

// route is what serves a request, and what it costs.
type route struct {
	serve handler
	cost  cost
}

// route finds the operation; ARM's paths compare without case.
func (s *Server) route(call *wire.Call) (route, *wire.Error) {
	if ref, ok := parseOperation(call.URL.Path); ok {
		if call.Method != http.MethodGet {
			return route{}, wrongMethod(call)
		}
		return route{
			serve: func(*wire.Call, token.Claims) (wire.Reply, error) { return s.operation(ref) },
			cost:  s.costOfPoll(ref),
		}, nil
	}
	id, err := armid.Parse(call.URL.Path)
	if err != nil || state.ResourceType(id) == "" {
		return route{}, wire.Unexpected(http.StatusNotFound, "InvalidResourceType",
			"The resource type could not be found for the path '%s' and api version '%s'.", call.URL.Path, call.URL.Query().Get("api-version"))
	}
	switch call.Method {
	case http.MethodGet:
		return route{func(call *wire.Call, c token.Claims) (wire.Reply, error) { return s.get(call, c, id) }, s.costOf(id, false)}, nil
	case http.MethodPatch:
		return route{func(call *wire.Call, c token.Claims) (wire.Reply, error) { return s.patch(call, c, id) }, s.costOf(id, true)}, nil
	}
	return route{}, wrongMethod(call)
}

func wrongMethod(call *wire.Call) *wire.Error {
	return wire.Unexpected(http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource does not support the HTTP method '%s'.", call.Method)
}

// operationRef names an operation; all parts are in lower case.
type operationRef struct {
	subscription, location, id string
}

// parseOperation reads /subscriptions/S/providers/Microsoft.Compute/locations/L/operations/ID.
func parseOperation(path string) (operationRef, bool) {
	segments := strings.Split(strings.ToLower(strings.TrimPrefix(path, "/")), "/")
	want := []string{"subscriptions", "", "providers", "microsoft.compute", "locations", "", "operations", ""}
	if len(segments) != len(want) {
		return operationRef{}, false
	}
	for i, word := range want {
		if word != "" && segments[i] != word || segments[i] == "" {
			return operationRef{}, false
		}
	}
	return operationRef{subscription: segments[1], location: segments[5], id: segments[7]}, true
}

func checkVersion(call *wire.Call) error {
	query, err := wire.Query(call, "api-version")
	if err != nil {
		return err
	}
	version := query.Get("api-version")
	if version == "" {
		return wire.Unexpected(http.StatusBadRequest, "MissingApiVersionParameter",
			"The api-version query parameter (?api-version=) is required for all requests.")
	}
	if !slices.Contains(apiVersions(), version) {
		return wire.Unexpected(http.StatusBadRequest, "NoRegisteredProviderFound",
			"No registered resource provider found for API version '%s'. The supported api-versions are '%s'.",
			version, strings.Join(apiVersions(), ", "))
	}
	return nil
}

func (s *Server) get(call *wire.Call, claims token.Claims, id armid.ID) (wire.Reply, error) {
	v, err := s.State.Resource(claims.ObjectID, id)
	if err != nil {
		return wire.Reply{}, target{path: call.URL.Path, kind: state.ResourceType(id)}.refusal(err, claims, s.State.Settings())
	}
	return wire.Reply{Header: http.Header{"Etag": {v.ETag}}, Body: encodeResource(v)}, nil
}

func (s *Server) patch(call *wire.Call, claims token.Claims, id armid.ID) (wire.Reply, error) {
	p, err := decodePatch(call, id)
	if err != nil {
		return wire.Reply{}, err
	}
	p.Principal = claims.ObjectID
	p.Fate = state.Fate{Lost: call.Fault.LoseOperation, Latency: time.Duration(call.Fault.OperationLatency)}
	if call.Fault.FailOperation {
		p.Fate.Fail = &state.Failure{Code: call.Fault.Code, Message: call.Fault.Message}
	}
	v, op, err := s.State.PatchIdentity(p)
	if err != nil {
		return wire.Reply{}, target{path: call.URL.Path, kind: state.ResourceType(id)}.refusal(err, claims, s.State.Settings())
	}
	return wire.Reply{
		Header: http.Header{
			"Etag": {v.ETag}, "Retry-After": {s.pollAfter(op)},
			"Azure-Asyncoperation": {operationURL(op, call.URL.Query().Get("api-version"))},
		},
		Body: encodeResource(v),
	}, nil
}

func (s *Server) operation(ref operationRef) (wire.Reply, error) {
	op, err := s.State.Operation(ref.subscription, ref.location, ref.id)
	if err != nil {
		return wire.Reply{}, wire.Refuse(http.StatusNotFound, "NotFound", "The entity was not found.")
	}
	reply := wire.Reply{Body: s.encodeOperation(op)}
	if op.Ended.IsZero() {
		reply.Header = http.Header{"Retry-After": {s.pollAfter(op)}}
	}
	return reply, nil
}
