package armclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/pace"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// Options are what [New] needs beside the configuration.
type Options struct {
	// Version is the program's, for the User-Agent.
	Version string
	// UserAgent is appended to the User-Agent; may be empty.
	UserAgent string
	// Transport sends every request, those for the client's own token too; nil
	// is the SDK's own.
	Transport policy.Transporter
	// Limits are ARM's; the zero value are the documented ones.
	Limits throttle.Limits
	// RequestTimeout bounds each request on the wire, its repetitions apart; zero
	// is 30 s.
	RequestTimeout time.Duration
	// RetryDelay is before the SDK's first repetition of a read; zero is the
	// SDK's own 0.8 s.
	RetryDelay time.Duration
	// Observe, if set, is told of every read and change when it has ended.
	Observe func(Ended)
	// Traffic, if set, is told of every request on the wire, and of every one that
	// had to wait.
	Traffic func(pace.Sent)
}

// Ended is a read or a change that has ended, as [Options] Observe is told of it.
type Ended struct {
	Kind      compute.Kind // of the resource
	Operation string       // "get" or "update"
	// Took is to the end of the operation that a change begins.
	Took time.Duration
	Err  error // typed; nil if it succeeded
}

// Client reads and changes the identities of virtual machines and scale sets. It
// is safe for concurrent use. The SDK's clients are of one subscription, and made
// when it is first met: the subscription is part of a [compute.Ref], never of the
// configuration.
type Client struct {
	configured Options
	observe    func(Ended)
	pacer      *throttle.Pacer
	timeout    time.Duration // of one request

	mu         sync.Mutex // protects all following fields
	credential azcore.TokenCredential
	options    *arm.ClientOptions // never changed, only replaced
	api        map[apiKey]resources
}

type apiKey struct {
	subscription string
	kind         compute.Kind
}

// New returns a client; it sends nothing. The configuration's mistakes are its
// only errors.
func New(config Config, o Options) (*Client, error) {
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 30 * time.Second
	}
	c := &Client{configured: o, observe: o.Observe, pacer: newPacer(o), timeout: o.RequestTimeout}
	if c.observe == nil {
		c.observe = func(Ended) {}
	}
	if err := c.Use(config); err != nil {
		return nil, err
	}
	return c, nil
}

// Use makes the client go on with another configuration; requests under way end
// with the one that they began with. After an error, which is a mistake in the
// configuration, the client is as before.
func (c *Client) Use(config Config) error {
	base, custom, err := clientOptions(config, c.configured)
	if err != nil {
		return err
	}
	credential, err := newCredential(config, base, custom)
	if err != nil {
		return fmt.Errorf("preparing the controller's own credential: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Registering resource providers would need rights that nobody gives.
	c.options = &arm.ClientOptions{ClientOptions: paced(base, c.pacer, c.configured), DisableRPRegistration: true}
	c.credential, c.api = credential, map[apiKey]resources{}
	return nil
}

func newPacer(o Options) *throttle.Pacer {
	limits := o.Limits
	if limits == (throttle.Limits{}) {
		limits = throttle.Documented()
	}
	return throttle.New(limits, time.Now)
}

// paced adds to the policies what only the clients of ARM have; the client of
// the controller's own tokens does without.
func paced(base policy.ClientOptions, pacer *throttle.Pacer, o Options) policy.ClientOptions {
	fence := pace.Fence{Endpoint: base.Cloud.Services[cloud.ResourceManager].Endpoint}
	base.PerCallPolicies = append(slices.Clone(base.PerCallPolicies), fence)
	base.PerRetryPolicies = append(slices.Clone(base.PerRetryPolicies), &pace.Policy{Pacer: pacer, Traffic: o.Traffic})
	return base
}

func clientOptions(config Config, o Options) (options policy.ClientOptions, custom bool, err error) {
	endpoints, custom, err := parseCloud(config.Cloud, config.EnvironmentFile)
	if err != nil {
		return policy.ClientOptions{}, false, err
	}
	options = policy.ClientOptions{
		Cloud:     endpoints,
		Transport: o.Transport,
		// Few and quick: what fails for longer is reported, and tried again by the
		// caller.
		Retry: policy.RetryOptions{
			MaxRetries: 2,
			RetryDelay: o.RetryDelay,
			TryTimeout: o.RequestTimeout,
			// Without 429: a caller that knows of it keeps away from the resource
			// and goes on with others, where the SDK would sleep.
			StatusCodes: []int{
				http.StatusRequestTimeout, http.StatusInternalServerError,
				http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
			},
			// A longer Retry-After is handed to the caller as well.
			MaxRetryDelay: 5 * time.Second,
		},
		PerCallPolicies: []policy.Policy{userAgent(strings.TrimSpace("aad-pod-identity/MIC/" + o.Version + " " + o.UserAgent))},
	}
	return options, custom, nil
}

// userAgent is sent before the SDK's own, which tells Microsoft's support what
// the client is built of.
type userAgent string

// Do sets the header.
func (u userAgent) Do(req *policy.Request) (*http.Response, error) {
	value := string(u)
	if sdk := req.Raw().Header.Get("User-Agent"); sdk != "" {
		value += " " + sdk
	}
	req.Raw().Header.Set("User-Agent", value)
	return req.Next()
}

// newCredential returns the source of the client's own token. The SDK keeps
// tokens and no failures, so that it recovers by itself when the way to the
// metadata service or to Entra does. Its default for the metadata service is to
// try for more than a minute, in which nobody would be told what is wrong.
func newCredential(config Config, base policy.ClientOptions, custom bool) (azcore.TokenCredential, error) {
	if config.ManagedIdentity {
		base.Retry.StatusCodes = append([]int{http.StatusNotFound, http.StatusGone, http.StatusTooManyRequests}, base.Retry.StatusCodes...)
		options := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: base}
		if config.ManagedIdentityClientID != "" {
			options.ID = azidentity.ClientID(config.ManagedIdentityClientID)
		}
		return azidentity.NewManagedIdentityCredential(options)
	}
	return azidentity.NewClientSecretCredential(config.TenantID, config.ClientID, string(config.ClientSecret), &azidentity.ClientSecretCredentialOptions{
		ClientOptions: base,
		// A cloud of one's own is unknown to Microsoft's list of authorities.
		DisableInstanceDiscovery: custom,
	})
}

// Get returns the identities that ARM shows on the resource. Errors are those of
// this package.
func (c *Client) Get(ctx context.Context, ref compute.Ref) (compute.Identities, error) {
	start := time.Now()
	r := request{id: ref.ID, action: ref.Kind.ARMType() + "/read"}
	ctx, _ = pace.With(ctx, ref)
	out, err := c.get(ctx, ref)
	if err != nil {
		err = r.fail(err)
	}
	c.observe(Ended{Kind: ref.Kind, Operation: "get", Took: time.Since(start), Err: err})
	return out, err
}

func (c *Client) get(ctx context.Context, ref compute.Ref) (compute.Identities, error) {
	api, err := c.resources(ref)
	if err != nil {
		return compute.Identities{}, err
	}
	seen, err := api.get(ctx, ref.ID)
	if err != nil {
		return compute.Identities{}, err
	}
	return seen.identities(ref.ID)
}

// fail gives an error its type, unless it has one.
func (r request) fail(err error) error {
	if _, ok := errors.AsType[*DeletingError](err); ok {
		return err
	}
	return r.classify(err)
}

// notStarted is fail for a request that ARM has not accepted. An answer of the
// 4xx class is a refusal; anything else may have been lost on the way back.
func (r request) notStarted(err error) error {
	var response *azcore.ResponseError
	var auth *azidentity.AuthenticationFailedError
	var paced *throttle.NotBeforeError
	refused := errors.As(err, &response) && response.StatusCode >= 400 && response.StatusCode < 500 &&
		response.StatusCode != http.StatusRequestTimeout
	typed := r.fail(err)
	if refused || errors.As(err, &auth) || errors.As(err, &paced) {
		return &NotStartedError{Err: typed}
	}
	return typed
}

func (c *Client) resources(ref compute.Ref) (resources, error) {
	key := apiKey{subscription: ref.ID.Subscription(), kind: ref.Kind}
	c.mu.Lock()
	defer c.mu.Unlock()
	if api, ok := c.api[key]; ok {
		return api, nil
	}
	api, err := newResources(key.kind, key.subscription, c.credential, c.options)
	if err != nil {
		return nil, fmt.Errorf("preparing the client of subscription %s: %w", key.subscription, err)
	}
	c.api[key] = api
	return api, nil
}
