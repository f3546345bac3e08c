// Package pace is the policy that every request to Azure Resource Manager (ARM)
// passes on its way to the wire: it asks package throttle for leave, and tells it
// what ARM answered.
//
// It must not wait or repeat, and it never lets a request leave ARM.
package pace

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// Sent is one request on the wire, or one that was kept back.
type Sent struct {
	Kind  compute.Kind // of the resource
	Class throttle.Class
	// Status is ARM's; zero if there was no answer, or the request was kept back.
	Status int
	// Wait, if not nil, says why the request was not sent.
	Wait *throttle.NotBeforeError
}

// Call is one read, change or poll. It travels in the context to the policy and
// comes back with what the SDK does not pass on.
type Call struct {
	// Tried is how many requests were asked for.
	Tried int
	// After is the Retry-After of the last answer.
	After time.Duration

	ref    compute.Ref
	failed error // what the last request came to, if it failed
}

type callKey struct{}

// With returns a context for requests about the resource, which one goroutine
// uses at a time. A request without one is refused.
func With(ctx context.Context, ref compute.Ref) (context.Context, *Call) {
	c := &Call{ref: ref}
	return context.WithValue(ctx, callKey{}, c), c
}

// Policy is passed by every request to ARM, the SDK's own repetitions among them,
// just before it is sent.
type Policy struct {
	Pacer *throttle.Pacer
	// Traffic, if set, is told of every request.
	Traffic func(Sent)
}

// Do sends the request if ARM has a token for it. For a repetition it has none,
// the request that failed speaks: that ARM is away must not look like a wait.
func (p *Policy) Do(req *policy.Request) (*http.Response, error) {
	raw := req.Raw()
	if err := raw.Context().Err(); err != nil {
		return nil, err // leadership may be lost
	}
	c, ok := raw.Context().Value(callKey{}).(*Call)
	if !ok {
		return nil, fmt.Errorf("asking for %s: outside of a call", raw.URL.Path)
	}
	c.Tried++
	class := classOf(raw, c.ref)
	sent := Sent{Kind: c.ref.Kind, Class: class}
	permit, err := p.Pacer.Take(Target(c.ref), class)
	if err != nil {
		sent.Wait, _ = errors.AsType[*throttle.NotBeforeError](err)
		p.tell(sent)
		if c.failed != nil {
			err = &lastError{c.failed}
		}
		return nil, err
	}
	response, err := req.Next()
	if err != nil {
		c.failed = err
		permit.Settle(throttle.Answer{Lost: true})
		p.tell(sent)
		return response, err
	}
	if c.failed = nil; response.StatusCode >= http.StatusBadRequest {
		c.failed = runtime.NewResponseError(response)
	}
	permit.Settle(throttle.ReadAnswer(response.StatusCode, response.Header, time.Now()))
	c.After = throttle.RetryAfter(response.Header, time.Now())
	sent.Status = response.StatusCode
	p.tell(sent)
	return response, nil
}

// lastError is a failure that is not to be repeated.
type lastError struct{ error }

func (e *lastError) Unwrap() error { return e.error }

// NonRetriable tells the SDK not to try again.
func (*lastError) NonRetriable() {}

func (p *Policy) tell(sent Sent) {
	if p.Traffic != nil {
		p.Traffic(sent)
	}
}

// Target is the resource as package throttle knows it.
func Target(ref compute.Ref) throttle.Target {
	return throttle.Target{Subscription: ref.ID.Subscription(), Resource: ref.ID.String()}
}

// classOf tells a poll from a look at the resource by its path.
func classOf(request *http.Request, ref compute.Ref) throttle.Class {
	switch {
	case request.Method != http.MethodGet:
		return throttle.Update
	case strings.EqualFold(strings.TrimSuffix(request.URL.Path, "/"), ref.ID.String()):
		return throttle.Read
	}
	return throttle.Poll
}

// Fence is the policy that comes first: no request may leave ARM. Where an
// operation is polled is read from an object of the cluster, and the request
// will carry the controller's token.
type Fence struct {
	// Endpoint is ARM's URL.
	Endpoint string
}

// Do refuses a request that is not for ARM, or one of its regions.
func (f Fence) Do(req *policy.Request) (*http.Response, error) {
	if u := req.Raw().URL; !f.holds(u) {
		return nil, &ForeignHostError{Host: u.Scheme + "://" + u.Host}
	}
	return req.Next()
}

func (f Fence) holds(u *url.URL) bool {
	endpoint, err := url.Parse(f.Endpoint)
	host := strings.ToLower(u.Host)
	return err == nil && u.Scheme == endpoint.Scheme &&
		(host == strings.ToLower(endpoint.Host) || strings.HasSuffix(host, "."+strings.ToLower(endpoint.Host)))
}

// ForeignHostError says that a request was to leave ARM.
type ForeignHostError struct{ Host string }

// Error names the host.
func (e *ForeignHostError) Error() string {
	return "refusing to send the controller's token to " + e.Host + ", which is not ARM"
}

// NonRetriable tells the SDK not to try again.
func (*ForeignHostError) NonRetriable() {}
