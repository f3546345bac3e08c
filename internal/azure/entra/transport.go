package entra

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// requestTimeout bounds one request.
	requestTimeout = 20 * time.Second
	// maxBody bounds an answer, in bytes; a token is a few thousand.
	maxBody = 1 << 20
	// discoveryLife is how long an authority's description of itself is kept: it
	// does not change.
	discoveryLife = 24 * time.Hour
	// maxDiscoveries bounds how many are kept: one for each authority and tenant.
	maxDiscoveries = 512
	discoveryPath  = "/.well-known/openid-configuration"
)

// NewTransport returns the way to Entra: through the environment's proxy, if
// there is one.
func NewTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: requestTimeout,
	}
}

// attempt is the SDK's transport for one token. It keeps the error that the SDK
// would only give the text of.
type attempt struct {
	guard *guard
	err   error
}

// Do sends a request, once; it is a policy.Transporter.
func (a *attempt) Do(r *http.Request) (*http.Response, error) {
	response, err := a.guard.do(r)
	if err != nil {
		a.err = err
	}
	return response, err
}

// guard is what all attempts pass. Nothing leaves it for a place that is not on the
// list, whatever a description, a variable of the environment or an answer says.
type guard struct {
	allowed Authorities
	next    http.RoundTripper
	now     func() time.Time

	mu        sync.Mutex // protects discovery
	discovery map[string]document
}

type document struct {
	body  []byte
	until time.Time
}

// do sends a request. A redirect is an answer like others.
func (g *guard) do(r *http.Request) (*http.Response, error) {
	if !g.allowed.allows(r.URL) {
		return nil, &ForbiddenError{Endpoint: r.URL.Scheme + "://" + r.URL.Host + "/", Allowed: g.allowed.names()}
	}
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, discoveryPath) {
		return g.discover(r)
	}
	return g.send(r)
}

func (g *guard) send(r *http.Request) (*http.Response, error) {
	response, err := g.next.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", r.URL.Host, err)
	}
	defer func() { _ = response.Body.Close() }() // nothing is left to read
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("the answer is longer than %d bytes", maxBody)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", r.URL.Host, err)
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// discover answers from what is kept, so that a token costs one request.
func (g *guard) discover(r *http.Request) (*http.Response, error) {
	key := r.URL.String()
	g.mu.Lock()
	known, ok := g.discovery[key]
	g.mu.Unlock()
	if ok && g.now().Before(known.until) {
		return &http.Response{
			Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
			Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(known.body)), ContentLength: int64(len(known.body)),
		}, nil
	}
	response, err := g.send(r)
	if err != nil || response.StatusCode != http.StatusOK {
		return response, err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading a description: %w", err)
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.discovery) >= maxDiscoveries {
		clear(g.discovery)
	}
	g.discovery[key] = document{body, g.now().Add(discoveryLife)}
	return response, nil
}
