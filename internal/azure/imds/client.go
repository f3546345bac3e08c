package imds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

const (
	// tokenVersion is the api-version that every SDK sends on the token route.
	tokenVersion = "2018-02-01"
	// maxBody bounds an answer; a token is a few kilobytes.
	maxBody = 1 << 20
	// requestTimeout bounds one request. The service answers a token that it has
	// cached in milliseconds and a new one in a few seconds.
	requestTimeout = 20 * time.Second
)

// Query is what the client asks a token for. ClientID or ResourceID is required:
// without either the service would answer with the machine's default identity.
type Query struct {
	Resource string
	ClientID string
	// ResourceID is used only if there is no ClientID: the service takes one way
	// to name an identity.
	ResourceID armid.ID
	// BypassCache asks for a token that the service has not kept.
	BypassCache bool
}

// named returns the query variable that names the identity.
func (q Query) named() (name, value string) {
	if q.ClientID != "" {
		return "client_id", q.ClientID
	}
	return "msi_res_id", q.ResourceID.String()
}

// Client asks the metadata service at one address. Use [NewClient].
type Client struct {
	base      url.URL
	http      *http.Client
	userAgent string
	now       func() time.Time
}

// Options configure a [Client].
type Options struct {
	// Address is the service's.
	Address netip.AddrPort
	// UserAgent names this program; empty sends none.
	UserAgent string
	// Transport is the way to the service; nil is [NewTransport].
	Transport http.RoundTripper
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// NewClient returns a client. It does not connect.
func NewClient(o Options) *Client {
	if o.Transport == nil {
		o.Transport = NewTransport()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Client{
		base:      url.URL{Scheme: "http", Host: o.Address.String()},
		userAgent: o.UserAgent,
		now:       o.Now,
		http: &http.Client{
			Transport: o.Transport,
			Timeout:   requestTimeout,
			// A redirect would carry the request, and the trust in its answer,
			// to somebody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// NewTransport returns a way to the service that no variable of the environment
// turns to a proxy and that changes no bytes of an answer.
func NewTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DisableCompression:    true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: requestTimeout,
	}
}

// Token asks for a token, once. Its errors are [*RefusedError],
// [*ThrottledError], [*UpdatingError] and [*UnavailableError]. An answer for
// another principal than the one asked for is an [*UnavailableError].
func (c *Client) Token(ctx context.Context, query Query) (Token, error) {
	if query.ClientID == "" && query.ResourceID.IsZero() {
		return Token{}, &RefusedError{Code: "invalid_request", Description: "neither a client ID nor a resource ID was given"}
	}
	response, err := c.get(ctx, query)
	if err != nil {
		return Token{}, &UnavailableError{Err: err}
	}
	defer func() { _ = response.Body.Close() }() // nothing is left to read
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("the answer is longer than %d bytes", maxBody)
	}
	if err != nil {
		return Token{}, &UnavailableError{Status: response.StatusCode, Err: fmt.Errorf("reading the answer: %w", err)}
	}
	if response.StatusCode != http.StatusOK {
		return Token{}, classify(response, body)
	}
	return c.accept(query, body)
}

func (c *Client) get(ctx context.Context, query Query) (*http.Response, error) {
	target := c.base
	target.Path = TokenPath
	name, value := query.named()
	variables := url.Values{"api-version": {tokenVersion}, name: {value}, "resource": {query.Resource}}
	if query.BypassCache {
		variables.Set("bypass_cache", "true")
	}
	target.RawQuery = variables.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("making a token request: %w", err)
	}
	request.Header.Set("Metadata", "true")
	request.Header.Set("User-Agent", c.userAgent)
	return c.http.Do(request)
}

func (c *Client) accept(query Query, body []byte) (Token, error) {
	token, err := ParseToken(body, c.now())
	if err == nil && query.ClientID != "" && token.ClientID != "" && !strings.EqualFold(token.ClientID, query.ClientID) {
		err = fmt.Errorf("asked for client ID %s, answered with a token for %s", query.ClientID, token.ClientID)
	}
	if err != nil {
		return Token{}, &UnavailableError{Status: http.StatusOK, Err: err}
	}
	if token.ClientID == "" {
		token.ClientID = query.ClientID
	}
	return token, nil
}

func classify(response *http.Response, body []byte) error {
	code, description := parseError(body)
	switch status := response.StatusCode; {
	case status == http.StatusTooManyRequests:
		return &ThrottledError{After: RetryAfter(response.Header)}
	case status == http.StatusNotFound, status == http.StatusGone:
		return &UpdatingError{Status: status}
	case status >= 400 && status < 500 && status != http.StatusRequestTimeout:
		return &RefusedError{Status: status, Code: code, Description: description}
	default:
		return &UnavailableError{Status: status, Err: errors.New(code + ": " + description)}
	}
}

// maxRetryAfter bounds what is believed of a Retry-After.
const maxRetryAfter = time.Hour

// RetryAfter returns how long the header Retry-After asks to wait, in seconds, an
// hour at most; zero if it does not say.
func RetryAfter(header http.Header) time.Duration {
	n, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}
