package server

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// The bounds of what passes through, in bytes. Instance metadata is a few
// kilobytes, with attached custom data up to some hundred.
const (
	maxForwardedAnswer  = 8 << 20
	maxForwardedRequest = 64 << 10
)

// forward sends the request on to the real service, to the canonical path and
// with the query as it was sent, byte for byte, and its answer back. The service
// cannot be reached otherwise than at its configured address, and a redirect of
// its is the caller's to see, not followed.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, path string) error {
	var failed error
	proxy := &httputil.ReverseProxy{
		Transport: s.options.Transport,
		ErrorLog:  slog.NewLogLogger(s.options.Log.Handler(), slog.LevelWarn),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: "http", Host: s.options.Upstream.String(), Path: path, RawQuery: p.In.URL.RawQuery}
			p.Out.Host = s.options.Upstream.String()
			p.Out.Header.Del("Connection")
			p.Out.Header.Del("Upgrade")
		},
		ModifyResponse: func(response *http.Response) error {
			response.Body = bounded{io.LimitReader(response.Body, maxForwardedAnswer), response.Body}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForwardedRequest)
	proxy.ServeHTTP(w, r)
	if failed != nil {
		return &refusal.Error{Reason: v1.ReasonUpstreamUnavailable, Message: "the node's metadata service does not answer: try again", Err: failed}
	}
	return nil
}

// bounded reads from a limited view of a body and closes the body itself.
type bounded struct {
	io.Reader
	io.Closer
}
