package entra

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

// Options configure a [Client].
type Options struct {
	// Authorities are where credentials may go.
	Authorities Authorities
	// UserAgent names this program.
	UserAgent string
	// Transport is the way there; nil is [NewTransport].
	Transport http.RoundTripper
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// Client asks for tokens. It is safe for concurrent use.
type Client struct {
	guard     *guard
	userAgent string
	now       func() time.Time
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
		guard:     &guard{allowed: o.Authorities, next: o.Transport, now: o.Now, discovery: map[string]document{}},
		userAgent: o.UserAgent, now: o.Now,
	}
}

// Token asks for a token, once: the SDK neither keeps it nor tries again. Its
// errors are [*RefusedError], [*ThrottledError], [*UnavailableError],
// [*InvalidError] and [*ForbiddenError]; none holds the credential.
func (c *Client) Token(ctx context.Context, r Request) (imds.Token, error) {
	scope, err := Scope(r.Resource)
	if err == nil {
		err = CheckTenant(r.TenantID)
	}
	if err != nil {
		return imds.Token{}, &InvalidError{Err: err}
	}
	if r.Authority == (Authority{}) {
		return imds.Token{}, &ForbiddenError{Allowed: c.guard.allowed.names()}
	}
	try := &attempt{guard: c.guard}
	credential, err := r.Credential.sdk(r, c.options(r.Authority, try))
	if err != nil {
		return imds.Token{}, &InvalidError{Err: fmt.Errorf("preparing a credential: %w", err)}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{scope}})
	if err != nil {
		return imds.Token{}, classify(errors.Join(try.err, err))
	}
	// Version 2.0 of the platform says neither what a token is for nor when it
	// begins.
	return imds.NewToken(token.Token, imds.Token{
		ClientID: r.ClientID, Resource: r.Resource, Type: "Bearer",
		NotBefore: c.now().Truncate(time.Second), ExpiresOn: token.ExpiresOn,
	}), nil
}

func (c *Client) options(authority Authority, transport policy.Transporter) policy.ClientOptions {
	return policy.ClientOptions{
		Cloud:           cloud.Configuration{ActiveDirectoryAuthorityHost: authority.String()},
		Transport:       transport,
		Retry:           policy.RetryOptions{MaxRetries: -1},
		PerCallPolicies: []policy.Policy{userAgent(c.userAgent)},
	}
}

// userAgent is sent before the SDK's own.
type userAgent string

// Do sets the header.
func (u userAgent) Do(r *policy.Request) (*http.Response, error) {
	value := string(u)
	if sdk := r.Raw().Header.Get("User-Agent"); sdk != "" {
		value += " " + sdk
	}
	r.Raw().Header.Set("User-Agent", value)
	return r.Next()
}

// classify reads what Entra answered. The SDK's own error is not kept where there
// is an answer, since it has the request in it.
func classify(err error) error {
	if forbidden, ok := errors.AsType[*ForbiddenError](err); ok {
		return forbidden
	}
	failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](err)
	if !ok || failed.RawResponse == nil {
		return &UnavailableError{Err: err}
	}
	body, readErr := runtime.Payload(failed.RawResponse)
	if readErr != nil {
		body = nil
	}
	return fromResponse(failed.RawResponse, body)
}
