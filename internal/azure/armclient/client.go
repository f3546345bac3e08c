package armclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
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
	// PollFrequency is how often a running operation is asked for where ARM does
	// not say; zero is 5 s, the SDK takes no less than 1 s.
	PollFrequency time.Duration
	// RetryDelay is before the SDK's first repetition of a read; zero is the
	// SDK's own 0.8 s.
	RetryDelay time.Duration
	// Observe, if set, is told of every request's end: "get" or "update", how
	// long it took and its typed error.
	Observe func(operation string, took time.Duration, err error)
}

// Client reads and changes the identities of scale sets. It is safe for
// concurrent use. A subscription's client is made when it is first met: the
// subscription is part of a [compute.Ref], never of the configuration.
type Client struct {
	credential azcore.TokenCredential
	options    arm.ClientOptions
	poll       time.Duration
	observe    func(string, time.Duration, error)

	mu        sync.Mutex
	scaleSets map[string]*armcompute.VirtualMachineScaleSetsClient // by subscription; protected by mu
}

// New returns a client; it sends nothing. The configuration's mistakes are its
// only errors.
func New(config Config, o Options) (*Client, error) {
	base, custom, err := clientOptions(config, o)
	if err != nil {
		return nil, err
	}
	credential, err := newCredential(config, base, custom)
	if err != nil {
		return nil, fmt.Errorf("preparing the controller's own credential: %w", err)
	}
	c := &Client{
		credential: credential,
		// Registering resource providers would need rights that nobody gives.
		options:   arm.ClientOptions{ClientOptions: base, DisableRPRegistration: true},
		poll:      o.PollFrequency,
		observe:   o.Observe,
		scaleSets: map[string]*armcompute.VirtualMachineScaleSetsClient{},
	}
	if c.poll == 0 {
		c.poll = 5 * time.Second
	}
	if c.observe == nil {
		c.observe = func(string, time.Duration, error) {}
	}
	return c, nil
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

// Get returns the identities that ARM shows on the scale set. Errors are those
// of this package.
func (c *Client) Get(ctx context.Context, ref compute.Ref) (compute.Identities, error) {
	start := time.Now()
	r := request{id: ref.ID, action: actionRead}
	out, err := c.get(ctx, ref)
	if err != nil {
		err = r.fail(err)
	}
	c.observe("get", time.Since(start), err)
	return out, err
}

func (c *Client) get(ctx context.Context, ref compute.Ref) (compute.Identities, error) {
	client, err := c.client(ref)
	if err != nil {
		return compute.Identities{}, err
	}
	response, err := client.Get(ctx, ref.ID.ResourceGroup(), ref.ID.Name(), nil)
	if err != nil {
		return compute.Identities{}, err
	}
	return identitiesOf(ref.ID, response.VirtualMachineScaleSet)
}

// Update sends the patch for a scale set that still has the ETag, waits for the
// operation's end and returns what ARM shows then. A failure that is sure to
// have changed nothing is a [*NotStartedError]. When ctx ends first, ARM goes on
// by itself.
func (c *Client) Update(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (compute.Identities, error) {
	start := time.Now()
	r := request{id: ref.ID, action: actionWrite, add: patch.Add}
	poller, err := c.begin(ctx, ref, etag, patch)
	if err != nil {
		err = r.notStarted(err)
		c.observe("update", time.Since(start), err)
		return compute.Identities{}, err
	}
	// While ARM works, the SDK waits out a 429: there is nothing else to do for
	// this scale set.
	polling := policy.WithRetryOptions(ctx, policy.RetryOptions{})
	var out compute.Identities
	response, err := poller.PollUntilDone(polling, &runtime.PollUntilDoneOptions{Frequency: c.poll})
	if err == nil {
		out, err = identitiesOf(ref.ID, response.VirtualMachineScaleSet)
	}
	if err != nil {
		err = r.fail(err)
	}
	c.observe("update", time.Since(start), err)
	return out, err
}

func (c *Client) begin(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (*runtime.Poller[armcompute.VirtualMachineScaleSetsClientUpdateResponse], error) {
	client, err := c.client(ref)
	if err != nil {
		return nil, err
	}
	var options armcompute.VirtualMachineScaleSetsClientBeginUpdateOptions
	if etag != "" {
		options.IfMatch = new(etag)
	}
	// Never repeated by the SDK: after a lost answer a second try would meet its
	// own change as a 412, which would look as if nothing had been done.
	once := policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1})
	return client.BeginUpdate(once, ref.ID.ResourceGroup(), ref.ID.Name(), updateOf(patch), &options)
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
	refused := errors.As(err, &response) && response.StatusCode >= 400 && response.StatusCode < 500 &&
		response.StatusCode != http.StatusRequestTimeout
	typed := r.fail(err)
	if refused || errors.As(err, &auth) {
		return &NotStartedError{Err: typed}
	}
	return typed
}

func (c *Client) client(ref compute.Ref) (*armcompute.VirtualMachineScaleSetsClient, error) {
	if ref.Kind != compute.ScaleSet {
		return nil, fmt.Errorf("%s is not a scale set", ref)
	}
	subscription := ref.ID.Subscription()
	c.mu.Lock()
	defer c.mu.Unlock()
	if client, ok := c.scaleSets[subscription]; ok {
		return client, nil
	}
	client, err := armcompute.NewVirtualMachineScaleSetsClient(subscription, c.credential, &c.options)
	if err != nil {
		return nil, fmt.Errorf("preparing the client of subscription %s: %w", subscription, err)
	}
	c.scaleSets[subscription] = client
	return client, nil
}

func updateOf(patch *compute.Patch) armcompute.VirtualMachineScaleSetUpdate {
	identity := &armcompute.VirtualMachineScaleSetIdentity{Type: new(armcompute.ResourceIdentityType(patch.Type))}
	for id, add := range patch.Body() {
		if identity.UserAssignedIdentities == nil {
			identity.UserAssignedIdentities = map[string]*armcompute.UserAssignedIdentitiesValue{}
		}
		identity.UserAssignedIdentities[id.String()] = nil // null on the wire: removes
		if add {
			identity.UserAssignedIdentities[id.String()] = &armcompute.UserAssignedIdentitiesValue{}
		}
	}
	return armcompute.VirtualMachineScaleSetUpdate{Identity: identity}
}

func identitiesOf(id armid.ID, set armcompute.VirtualMachineScaleSet) (compute.Identities, error) {
	out := compute.Identities{Type: compute.TypeNone, Present: map[armid.ID]string{}, ETag: deref(set.Etag)}
	if set.Properties != nil {
		switch state := deref(set.Properties.ProvisioningState); {
		case strings.EqualFold(state, "Deleting"):
			return compute.Identities{}, &DeletingError{ID: id}
		case strings.EqualFold(state, "Updating"), strings.EqualFold(state, "Creating"):
			out.Updating = true
		}
	}
	if set.Identity == nil {
		return out, nil
	}
	kind, known := compute.ParseIdentityType(string(deref(set.Identity.Type)))
	if !known {
		return compute.Identities{}, fmt.Errorf("identity type %q of %s is unknown: nothing is changed there", kind, id)
	}
	out.Type = kind
	for key, value := range set.Identity.UserAssignedIdentities {
		user, err := armid.Parse(key)
		if err != nil {
			out.Unreadable = append(out.Unreadable, key)
			continue
		}
		out.Present[user] = ""
		if value != nil {
			out.Present[user] = deref(value.ClientID)
		}
	}
	return out, nil
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
