// Package entra answers as the Microsoft identity platform of the simulated
// tenant: discovery documents, the signing keys, and the token endpoint for
// client credentials with a secret or with a certificate.
//
// Federated credentials are not there yet and are refused. It must not know
// which application exists: that is the state's.
package entra

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// Host is Entra's host name in the public cloud.
const Host = "login.microsoftonline.com"

// Hosts returns the names under which Entra answers: the issuer of version 1.0
// tokens publishes its documents there too.
func Hosts() []string {
	return []string{Host, "login.microsoft.com", "login.windows.net", "sts.windows.net"}
}

// Server is the Entra surface.
type Server struct {
	State  *state.State
	Tokens *token.Issuer
	Now    func() time.Time
}

// Surface returns Entra for [wire.Recorder.Handler].
func (s *Server) Surface() wire.Surface {
	return wire.Surface{Name: journal.Entra, Serve: s.serve, Render: s.render, Headers: headers}
}

func headers() http.Header {
	return http.Header{
		"X-Ms-Request-Id": {uuid.NewString()}, "Pragma": {"no-cache"}, "P3p": {`CP="DSP CUR OTPi IND OTRi ONL FIN"`},
		"Strict-Transport-Security": {"max-age=31536000; includeSubDomains"}, "X-Content-Type-Options": {"nosniff"},
	}
}

// errorBody is how Entra refuses.
type errorBody struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	Codes         []int  `json:"error_codes"`
	Timestamp     string `json:"timestamp"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
	URI           string `json:"error_uri,omitempty"`
}

func (s *Server) render(call *wire.Call, e *wire.Error) any {
	body := errorBody{
		Error: e.Code, Codes: []int{}, Timestamp: s.Now().UTC().Format("2006-01-02 15:04:05Z"),
		TraceID: uuid.NewString(), CorrelationID: call.Header.Get("client-request-id"),
	}
	if body.CorrelationID == "" {
		body.CorrelationID = uuid.NewString()
	}
	if code := codeOf(e.Message); code != 0 {
		body.Codes = []int{code}
		body.URI = "https://" + Host + "/error?code=" + strconv.Itoa(code)
		if call.Entry.Detail == "" {
			call.Entry.Detail = "AADSTS" + strconv.Itoa(code)
		}
	}
	body.Description = e.Message + " Trace ID: " + body.TraceID + " Correlation ID: " + body.CorrelationID + " Timestamp: " + body.Timestamp
	return body
}

// codeOf reads the number with which Entra's messages begin: AADSTS700016: ….
func codeOf(message string) int {
	prefix, _, _ := strings.Cut(message, ":")
	digits, ok := strings.CutPrefix(prefix, "AADSTS")
	code, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return 0
	}
	return code
}

// serve routes by the path behind the tenant, without case.
func (s *Server) serve(call *wire.Call) (wire.Reply, error) {
	path := strings.ToLower(call.URL.Path)
	tenant, route, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	method, serve := http.MethodGet, s.routes(tenant)[route]
	if route == "oauth2/v2.0/token" {
		method, serve = http.MethodPost, s.token
	}
	if tenant == "common" && route == "discovery/instance" {
		return s.instanceDiscovery(call)
	}
	if serve == nil {
		return wire.Reply{}, wire.Unexpected(http.StatusNotFound, "not_found", "AADSTS90009: The path '%s' is not known.", call.URL.Path)
	}
	if call.Method != method {
		return wire.Reply{}, wire.Unexpected(http.StatusMethodNotAllowed, "invalid_request",
			"AADSTS900561: The endpoint only accepts %s requests. Received a %s request.", method, call.Method)
	}
	if tenant != s.State.Tenant() {
		return wire.Reply{}, unknownTenant(route, tenant)
	}
	return serve(call)
}

func (s *Server) routes(tenant string) map[string]func(*wire.Call) (wire.Reply, error) {
	return map[string]func(*wire.Call) (wire.Reply, error){
		".well-known/openid-configuration":      s.openID(tenant, false),
		"v2.0/.well-known/openid-configuration": s.openID(tenant, true),
		"discovery/keys":                        s.keys,
		"discovery/v2.0/keys":                   s.keys,
	}
}

// unknownTenant is a refusal that Entra documents; the token endpoint and the
// documents name it differently.
func unknownTenant(route, tenant string) *wire.Error {
	code := "invalid_tenant"
	if strings.HasPrefix(route, "oauth2/") {
		code = "invalid_request"
	}
	return wire.Refuse(http.StatusBadRequest, code,
		"AADSTS90002: Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.", tenant)
}
