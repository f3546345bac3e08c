// Package imds answers as the instance metadata service of each node: the token
// route and a part of the instance route.
//
// Which node is asked follows from the source address, as it does on the wire:
// whatever reaches IMDS from a VM, or from a pod on it, gets the VM's
// identities. It must not know NMI, or answer anything that Azure would not.
// Other routes below /metadata are not there.
package imds

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// Server is the IMDS of all nodes. Make one with [New].
type Server struct {
	state  *state.State
	tokens *token.Issuer
	gate   *throttle.Gate
	cache  *tokenCache
}

// New returns the IMDS of all nodes of the state, on a clock.
func New(s *state.State, tokens *token.Issuer, now func() time.Time) *Server {
	return &Server{state: s, tokens: tokens, gate: throttle.NewGate(now), cache: newTokenCache(now)}
}

// The routes, in lower case: IMDS compares paths without case.
const (
	tokenPath    = "/metadata/identity/oauth2/token"
	instancePath = "/metadata/instance"
	computePath  = "/metadata/instance/compute"
)

// Surface returns IMDS for [wire.Recorder.Handler].
func (s *Server) Surface() wire.Surface {
	return wire.Surface{Name: journal.IMDS, Serve: s.serve, Render: render, Headers: headers}
}

func headers() http.Header { return http.Header{"Server": {"IMDS/150.870.65.1854"}} }

// tokenError is the OAuth form that the identity routes use.
type tokenError struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// instanceError is the form of all other routes.
type instanceError struct {
	Error          string   `json:"error"`
	NewestVersions []string `json:"newest-versions,omitempty"`
}

func render(call *wire.Call, e *wire.Error) any {
	if e.Code == "" && e.Message == "" {
		e.Code, e.Message = usual(e.Status)
	}
	if isIdentity(call) {
		return tokenError{e.Code, e.Message}
	}
	body := instanceError{Error: e.Message}
	if e.Code == codeVersion {
		body.NewestVersions = newest(instanceVersions())
	}
	return body
}

// usual is what a status is about that a fault gives no words for.
func usual(status int) (code, message string) {
	switch status {
	case http.StatusNotFound:
		return "not_found", "The metadata service is being updated."
	case http.StatusGone:
		return "gone", "The metadata service is being updated. Try again within 70 seconds."
	case http.StatusTooManyRequests:
		return "invalid_request", throttled
	}
	return "server_error", "The metadata service failed."
}

func isIdentity(call *wire.Call) bool {
	return strings.HasPrefix(strings.ToLower(call.URL.Path), "/metadata/identity")
}

func (s *Server) serve(call *wire.Call) (wire.Reply, error) {
	node, ok := s.state.NodeAt(call.Entry.Remote)
	if !ok {
		return wire.Reply{}, wire.Unexpected(http.StatusNotFound, "not_found", "No node has the source address %s.", call.Entry.Remote)
	}
	serve, err := s.route(call)
	if err != nil {
		return wire.Reply{}, err
	}
	leave, err := s.enter(call, node.Name)
	if err != nil {
		return wire.Reply{}, err
	}
	defer leave()
	if err := checkHeaders(call); err != nil {
		return wire.Reply{}, err
	}
	if !call.Pause(s.state.IMDSLatency()) {
		return wire.Reply{}, wire.ErrGone
	}
	return serve(call, node)
}

func (s *Server) route(call *wire.Call) (func(*wire.Call, state.NodeInfo) (wire.Reply, error), error) {
	path := strings.TrimSuffix(strings.ToLower(call.URL.Path), "/")
	if !slices.Contains([]string{tokenPath, instancePath, computePath}, path) {
		return nil, wire.Unexpected(http.StatusNotFound, "not_found", "Not found.")
	}
	if call.Method != http.MethodGet {
		return nil, wire.Unexpected(http.StatusMethodNotAllowed, "invalid_request", "The requested method is not allowed.")
	}
	if path == tokenPath {
		return s.token, nil
	}
	return func(call *wire.Call, node state.NodeInfo) (wire.Reply, error) {
		return s.instance(call, node, path == computePath)
	}, nil
}

// checkHeaders refuses what a browser or a proxy might have been tricked into.
func checkHeaders(call *wire.Call) error {
	if !strings.EqualFold(call.Header.Get("Metadata"), "true") {
		return wire.Refuse(http.StatusBadRequest, "invalid_request", "Required metadata header not specified")
	}
	if len(call.Header.Values("X-Forwarded-For")) > 0 {
		return wire.Refuse(http.StatusBadRequest, "invalid_request", "Request contains the X-Forwarded-For header, which is not allowed")
	}
	return nil
}

// query reads the query of an IMDS call. A name that comes twice is a refusal
// that IMDS documents, a name that it does not know is unexpected.
func query(call *wire.Call, allowed ...string) (url.Values, error) {
	values, err := url.ParseQuery(call.URL.RawQuery)
	if err != nil {
		return nil, wire.Unexpected(http.StatusBadRequest, "invalid_request", "The query string cannot be parsed")
	}
	for name, all := range values {
		if !slices.Contains(allowed, name) {
			return nil, wire.Unexpected(http.StatusBadRequest, "invalid_request", "Unknown query variable '%s'", name)
		}
		if len(all) > 1 {
			return nil, wire.Refuse(http.StatusBadRequest, "invalid_request", "Duplicate query variable '%s'", name)
		}
	}
	return values, nil
}

// refusal puts a typed error of the state into IMDS's words.
func refusal(err error) error {
	switch {
	case errors.Is(err, state.ErrIdentityNotFound):
		return wire.Refuse(http.StatusBadRequest, "invalid_request", "Identity not found")
	case errors.Is(err, state.ErrSeveral):
		return wire.Refuse(http.StatusBadRequest, "invalid_request",
			"Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request")
	}
	return err
}
