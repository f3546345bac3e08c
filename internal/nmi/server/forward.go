package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// The bounds of what passes through, in bytes. Instance metadata is a few
// kilobytes, with attached custom data up to some hundred.
const (
	maxForwardedAnswer  = 8 << 20
	maxForwardedRequest = 64 << 10
)

// forward asks the real service in the caller's place, and passes its answer on.
// No byte of the request's line or head is copied: the path is the canonical one,
// the query is written anew, and of the headers a few are set. The service is
// asked at its configured address and nowhere else, and a redirect of its is the
// caller's to see, not followed.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, path string, record *audit.Record) error {
	query, err := imds.RebuildQuery(r.URL.RawQuery)
	if err != nil {
		return invalid(err)
	}
	target := url.URL{Scheme: "http", Host: s.options.Upstream.String(), Path: path, RawQuery: query}
	var body io.Reader
	if r.Method == http.MethodPost {
		if body, err = readBody(w, r); err != nil {
			return err
		}
	}
	// A caller that leaves does not end what the service has begun: it counts
	// until it is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), s.options.Timeout)
	defer cancel()
	out, err := http.NewRequestWithContext(ctx, r.Method, target.String(), body)
	if err != nil {
		return unavailable(err)
	}
	out.Header = forwardedHeader(r.Header)
	leave, err := s.options.Gate.Enter(r.Context(), record)
	if err != nil {
		return err
	}
	start := s.options.Now()
	_, span := tracing.Child(ctx, "forward")
	answer, err := s.options.Transport.RoundTrip(out)
	span.End()
	s.options.Forwarded(forwarded(record.Route, out.URL, answer, s.options.Now().Sub(start)))
	if err != nil {
		leave(false, 0)
		return unavailable(err)
	}
	defer func() {
		_ = answer.Body.Close() // nothing is left to read
		leave(answer.StatusCode == http.StatusTooManyRequests, imds.RetryAfter(answer.Header))
	}()
	return pass(w, answer)
}

// forwarded describes a request and its answer, which is nil if there was none.
func forwarded(route audit.Route, target *url.URL, answer *http.Response, took time.Duration) Forwarded {
	query := target.Query()
	out := Forwarded{Route: route, Took: took, Named: slices.ContainsFunc([]string{"client_id", "object_id", "msi_res_id", "mi_res_id"}, query.Has)}
	if answer != nil {
		out.Status = answer.StatusCode
	}
	return out
}

func unavailable(err error) error {
	return &refusal.Error{Reason: v1.ReasonUpstreamUnavailable, Message: "the node's metadata service does not answer: try again", Err: err}
}

// readBody reads all of a body, so that what is forwarded is as long as it says.
func readBody(w http.ResponseWriter, r *http.Request) (io.Reader, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxForwardedRequest))
	if err != nil {
		return nil, refusal.New(v1.ReasonInvalidRequest, "the body cannot be read, or is longer than %d bytes", maxForwardedRequest)
	}
	return strings.NewReader(string(body)), nil
}

// forwardedHeader returns what of a caller's headers has a meaning to the
// service. Whether the header Metadata was needed has been decided.
func forwardedHeader(from http.Header) http.Header {
	out := http.Header{"Metadata": {"true"}}
	for _, name := range []string{"Accept", "Content-Type", "User-Agent", "X-Ms-Client-Request-Id"} {
		if value := from.Get(name); value != "" {
			out.Set(name, value)
		}
	}
	if out.Get("User-Agent") == "" {
		out["User-Agent"] = nil // or net/http sends its own
	}
	return out
}

// pass writes the service's answer, but for the headers that are about its
// connection to us.
func pass(w http.ResponseWriter, answer *http.Response) error {
	if answer.StatusCode < http.StatusOK {
		return unavailable(errors.New("the answer changes the protocol"))
	}
	header := w.Header()
	for name, values := range answer.Header {
		if !aboutConnection(answer.Header, name) {
			header[name] = values
		}
	}
	w.WriteHeader(answer.StatusCode)
	n, err := io.Copy(w, io.LimitReader(answer.Body, maxForwardedAnswer+1))
	if err == nil && n > maxForwardedAnswer {
		err = errors.New("the answer is too long")
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

func aboutConnection(header http.Header, name string) bool {
	hopByHop := []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
	if slices.Contains(hopByHop, name) {
		return true
	}
	for _, values := range header["Connection"] {
		for token := range strings.SplitSeq(values, ",") {
			if strings.EqualFold(strings.TrimSpace(token), name) {
				return true
			}
		}
	}
	return false
}
