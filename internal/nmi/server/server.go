// Package server answers pods' HTTP requests in the place of the node's metadata
// service.
//
// What is served is an exhaustive list of routes (see routeOf); what is not on
// it never leaves the node. The package speaks HTTP and the service's dialect;
// who the caller is and what it may have is decided behind [Agent].
package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

const contentType = "application/json; charset=utf-8"

// Agent decides about requests. What it finds out on the way, it writes to the
// record. Its errors are [*refusal.Error]s; others are the agent's mistakes.
type Agent interface {
	// Identify names the pod behind an address. wait allows it to wait a moment
	// for a pod that is not known yet.
	Identify(ctx context.Context, remote netip.Addr, wait bool, record *audit.Record) (Caller, error)
	// Named returns the pod of this node by its name, for a program of the node
	// that asks in its place.
	Named(ctx context.Context, pod identity.Key, record *audit.Record) (Caller, error)
}

// Caller is a pod that asks.
type Caller interface {
	// Excepted reports whether the pod's requests go to the real service.
	Excepted() bool
	// Token returns what answers the request.
	Token(ctx context.Context, request imds.TokenRequest, record *audit.Record) (imds.Answer, error)
}

// Limits bounds what one address asks, and all together.
type Limits interface {
	// Enter lets a request in; leave must follow. The error is a refusal.
	Enter(remote netip.Addr) (leave func(), err error)
}

// Gate lets requests pass that are forwarded, as many as the real service takes.
type Gate interface {
	// Enter waits for the request's turn; leave must follow, and says whether the
	// service complained, and how long it asked to wait. The error is a refusal.
	Enter(ctx context.Context, record *audit.Record) (leave func(throttled bool, after time.Duration), err error)
}

// Options configure a [Server].
type Options struct {
	Agent Agent
	// Upstream is the real metadata service.
	Upstream netip.AddrPort
	// Transport is the way there; nil is [imds.NewTransport].
	Transport http.RoundTripper
	// Limits and Gate are asked before anything is done; nil bounds nothing.
	Limits Limits
	Gate   Gate
	// NoMetadataHeader lets requests without the header Metadata pass.
	NoMetadataHeader bool
	// BlockInstanceMetadata keeps /metadata/instance from pods.
	BlockInstanceMetadata bool
	// Listed are the names below /metadata, of those that [Listable] returns, that
	// every pod may read.
	Listed []string
	// RetryAfter answers what is not there yet with 503 and Retry-After instead
	// of 404.
	RetryAfter bool
	// Timeout bounds one request; 30 seconds if zero.
	Timeout time.Duration
	// Forwarded is told how the real service answered what was forwarded to it;
	// nil tells nobody.
	Forwarded func(Forwarded)
	// Done is told every decision; nil tells nobody.
	Done func(context.Context, *audit.Record)
	// Tracer makes spans of requests; nil makes none.
	Tracer *tracing.Tracer
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// Forwarded is one request that the real service was asked in a caller's place.
type Forwarded struct {
	Route audit.Route
	// Named says that a token request names an identity.
	Named bool
	// Status is the answer's; zero if there was none.
	Status int
	Took   time.Duration
}

// Server is the handler. Use [New].
type Server struct {
	options Options
	// contentType is what every answer of the agent's own says. It is shared, and
	// only read.
	contentType []string
	buffers     sync.Pool
}

// New returns a server.
func New(options Options) *Server {
	if options.Transport == nil {
		options.Transport = imds.NewTransport()
	}
	if options.Timeout == 0 {
		options.Timeout = 30 * time.Second
	}
	if options.Done == nil {
		options.Done = func(context.Context, *audit.Record) {}
	}
	if options.Forwarded == nil {
		options.Forwarded = func(Forwarded) {}
	}
	if options.Limits == nil {
		options.Limits = unlimited{}
	}
	if options.Gate == nil {
		options.Gate = open{}
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Server{options: options, contentType: []string{contentType}}
}

// unlimited are Limits that bound nothing.
type unlimited struct{}

func (unlimited) Enter(netip.Addr) (func(), error) { return func() {}, nil }

// open is a Gate that is always open.
type open struct{}

func (open) Enter(context.Context, *audit.Record) (func(bool, time.Duration), error) {
	return func(bool, time.Duration) {}, nil
}

// ServeHTTP answers one request and tells Done how it went. A panic becomes an
// InternalError.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := s.options.Now()
	ctx, span := s.options.Tracer.Server(r.Context(), "request")
	e := &serving{
		response: response{ResponseWriter: w}, record: audit.Record{Route: audit.RouteOther},
		ctx: patience{Context: ctx, until: time.Now().Add(s.options.Timeout)},
	}
	out, record := &e.response, &e.record
	limit(w, e.ctx.until)
	defer func() { //nolint:contextcheck // the request's context, with a limit
		record.At, record.Status = s.options.Now(), out.status
		record.Took = record.At.Sub(start)
		s.options.Done(&e.ctx, record)
		e.ctx.end()
		trace(span, r.Method, record)
	}()
	err := s.guarded(out, r.WithContext(&e.ctx), record) //nolint:contextcheck // the request's context, with a limit
	if err == nil {
		return
	}
	refused := refusal.Of(err)
	record.Reason, record.Err = refused.Reason, refused.Err
	if out.status != 0 {
		// Too late to say anything else: the caller must not take what it got
		// for a whole answer.
		panic(http.ErrAbortHandler)
	}
	s.refuse(out, refused, record.Route)
}

// serving is what one request needs, in one piece.
type serving struct {
	response response
	record   audit.Record
	ctx      patience
}

// limit bounds the connection by the same time as the request, plus a little to
// say so. Without it, the deadline for reading the request would end the wait
// for its answer.
func limit(w http.ResponseWriter, until time.Time) {
	controller := http.NewResponseController(w)
	end := until.Add(5 * time.Second)
	// A writer without deadlines is one of a test, which has its own.
	_ = controller.SetReadDeadline(end)
	_ = controller.SetWriteDeadline(end)
}

// response remembers the status that was sent.
type response struct {
	http.ResponseWriter
	status int
}

// WriteHeader passes the status on; informational ones do not count.
func (r *response) WriteHeader(status int) {
	if r.status == 0 && status >= http.StatusOK {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write passes the body on.
func (r *response) Write(body []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(body)
}

// Unwrap gives http.ResponseController the writer beneath.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (s *Server) guarded(w http.ResponseWriter, r *http.Request, record *audit.Record) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("answering a request: panic: %v", p)
		}
	}()
	return s.serve(w, r, record)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, record *audit.Record) error {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return fmt.Errorf("reading the remote address: %w", err)
	}
	record.Remote = remote.Addr().Unmap()
	kind, path := routeOf(wirePath(r), s.options.Listed)
	record.Route = recorded(kind)
	leave, err := s.options.Limits.Enter(record.Remote)
	if err != nil {
		return err
	}
	defer leave()
	switch {
	case kind == malformed:
		return refusal.New(v1.ReasonInvalidRequest, "Invalid request: the path must be canonical, of letters, digits and . _ ~ -, without empty or dot segments")
	case kind == host:
		return s.host(w, r, record)
	case s.options.BlockInstanceMetadata && (kind == instance || kind == instanceLike):
		return refusal.New(v1.ReasonBlocked, "instance metadata is not given to pods here")
	}
	if err := checkHeaders(r.Header, !s.options.NoMetadataHeader); err != nil {
		return err
	}
	if kind == token {
		return s.token(w, r, record)
	}
	return s.other(w, r, target{kind, path}, record)
}

// wirePath returns the path as it was sent: nothing decoded, nothing cleaned.
// A request for a proxy, or for no path at all, has none.
func wirePath(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path
}

func recorded(kind route) audit.Route {
	switch kind {
	case token:
		return audit.RouteToken
	case host:
		return audit.RouteHost
	case instance, instanceLike:
		return audit.RouteInstance
	}
	return audit.RouteOther
}

func checkHeaders(header http.Header, required bool) error {
	err := imds.CheckHeaders(header, required)
	if err == nil {
		return nil
	}
	var refused *imds.RequestError
	if errors.As(err, &refused) && refused.Forwarded {
		return refusal.New(v1.ReasonForbiddenHeader, "%s", refused.Description)
	}
	return invalid(err)
}

func invalid(err error) error {
	if err == nil {
		return nil
	}
	return refusal.New(v1.ReasonInvalidRequest, "%s", err.Error())
}
