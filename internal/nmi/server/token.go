package server

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

func notAllowed(method string) error {
	return refusal.New(v1.ReasonMethodNotAllowed, "method %s is not served on this path", strconv.Quote(method))
}

// identify asks who calls.
func (s *Server) identify(ctx context.Context, wait bool, record *audit.Record) (Caller, error) {
	ctx, span := tracing.Child(ctx, "identify")
	defer span.End()
	return s.options.Agent.Identify(ctx, record.Remote, wait, record)
}

// token answers a token request. A pod with an exception speaks to the real
// service, which judges its parameters.
func (s *Server) token(w http.ResponseWriter, r *http.Request, record *audit.Record) error {
	if r.Method != http.MethodGet {
		return notAllowed(r.Method)
	}
	caller, err := s.identify(r.Context(), true, record)
	if err != nil {
		return err
	}
	if caller.Excepted() {
		record.Reason = v1.ReasonException
		return s.forward(w, r, imds.TokenPath, record)
	}
	answer, err := s.ask(r, caller, record)
	if err != nil {
		return err
	}
	s.write(w, answer, imds.Answer.AppendWire)
	return nil
}

// host answers a token request of a program of the node, such as a volume driver
// that reads secrets for a pod which does not run yet. It asks from the node's
// loopback address, which no pod has; to everybody else the route is not there.
// It can ask for any pod of this node, and so needs the pod's name, but not the
// header Metadata. Exceptions have no meaning here: the node can ask the real
// service itself.
func (s *Server) host(w http.ResponseWriter, r *http.Request, record *audit.Record) error {
	if record.Remote != netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		return refusal.New(v1.ReasonNotServed, "this path is not served to pods")
	}
	if err := checkHeaders(r.Header, false); err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return notAllowed(r.Method)
	}
	name, namespace := r.Header.Values("Podname"), r.Header.Values("Podns")
	if len(name) != 1 || len(namespace) != 1 || name[0] == "" || namespace[0] == "" {
		return refusal.New(v1.ReasonInvalidRequest, "missing 'podname' and 'podns' from request header: give each once")
	}
	caller, err := s.options.Agent.Named(r.Context(), identity.Key{Namespace: namespace[0], Name: name[0]}, record)
	if err != nil {
		return err
	}
	answer, err := s.ask(r, caller, record)
	if err != nil {
		return err
	}
	s.write(w, answer, imds.Answer.AppendHostWire)
	return nil
}

// ask reads the query and gets its answer.
func (s *Server) ask(r *http.Request, caller Caller, record *audit.Record) (imds.Answer, error) {
	request, err := imds.ParseTokenQuery(r.URL.RawQuery)
	if err != nil {
		return imds.Answer{}, invalid(err)
	}
	record.Resource = request.Resource
	answer, err := caller.Token(r.Context(), request, record)
	if err != nil {
		return imds.Answer{}, err
	}
	record.Reason = v1.ReasonIssued
	return answer, nil
}

// write sends an answer, encoded. Buffers are used again: an answer is some
// kilobytes, and there may be thousands a second.
func (s *Server) write(w http.ResponseWriter, answer imds.Answer, encode func(imds.Answer, []byte, time.Time) []byte) {
	buffer, ok := s.buffers.Get().(*[]byte)
	if !ok {
		buffer = new([]byte)
	}
	body := encode(answer, (*buffer)[:0], s.options.Now())
	header := w.Header()
	header["Content-Type"] = s.contentType
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // a caller that left needs no token
	*buffer = body
	clear(body) // a token does not stay
	s.buffers.Put(buffer)
}

func methodServed(method string, writes bool) bool {
	return method == http.MethodGet || method == http.MethodPost && writes
}

// target is a path that is no token route.
type target struct {
	kind route
	path string
}

// other answers what is not a token request: instance metadata, and what the
// install lists, for every pod of this node, the rest for pods with an exception.
// Only those may write, as one does to acknowledge scheduled events.
func (s *Server) other(w http.ResponseWriter, r *http.Request, to target, record *audit.Record) error {
	refused := refusal.New(v1.ReasonNotServed, "this path is not served to pods")
	if to.kind == notServed || to.kind == instanceLike {
		return refused
	}
	caller, err := s.identify(r.Context(), to.kind != exceptional, record)
	excepted := err == nil && caller.Excepted()
	switch {
	case to.kind == exceptional && !excepted:
		return refused
	case err != nil:
		return err
	case !methodServed(r.Method, excepted && to.kind != instance):
		return notAllowed(r.Method)
	}
	record.Reason = v1.ReasonForwarded
	if excepted {
		record.Reason = v1.ReasonException
	}
	return s.forward(w, r, to.path, record)
}
