package armclient

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/pace"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// Operation is a change that ARM has accepted.
type Operation struct {
	// ResumeToken continues it in any process, while it runs; empty when it has
	// ended.
	ResumeToken string
	// After is when to poll, from now on; zero if ARM does not say.
	After time.Duration
	// Shown is what ARM shows of the resource at the operation's end; nil if that
	// is not known.
	Shown *compute.Identities
	// Lost says that ARM does not know the operation any more: only a look at the
	// resource tells what became of it.
	Lost bool
}

// Running is an operation to be polled.
type Running struct {
	ResumeToken string
	// Started is when the change was sent.
	Started time.Time
	// Add holds the identities that it attaches.
	Add []armid.ID
}

// Ready returns nil if a change of the resource could be sent now, else a
// [*ThrottledError] that says when. Last is when the last one was sent, by this
// process or one before; zero if there was none.
func (c *Client) Ready(ref compute.Ref, last time.Time) error {
	if wait := c.pacer.Ready(pace.Target(ref), last); wait != nil {
		return request{id: ref.ID}.classify(wait)
	}
	return nil
}

// KeepOff keeps every request in the resource's subscription back, as ARM has asked
// the process before this one.
func (c *Client) KeepOff(ref compute.Ref, after time.Duration) {
	c.pacer.HoldSubscription(pace.Target(ref), after)
}

// Budgets returns how many requests can be sent at once, by kind of limit.
func (c *Client) Budgets() []throttle.Budget { return c.pacer.Budgets() }

// Begin sends the patch for a resource that still has the ETag. It does not wait
// for the operation's end. A failure that is sure to have changed nothing is a
// [*NotStartedError].
func (c *Client) Begin(ctx context.Context, ref compute.Ref, etag string, patch *compute.Patch) (Operation, error) {
	running := Running{Started: time.Now(), Add: patch.Add}
	change := change{block: blockOf(patch)}
	if etag != "" {
		change.ifMatch = &etag
	}
	poller, call, err := c.begin(ctx, ref, change, "")
	if err != nil {
		r := writeOf(ref, running)
		return c.ended(ref, running, Operation{}, r.notStarted(err))
	}
	return c.progress(ctx, ref, running, poller, call)
}

// Poll asks once for an operation. An error with a ResumeToken says that asking
// failed, and the operation may still run; one without says how it has failed.
func (c *Client) Poll(ctx context.Context, ref compute.Ref, running Running) (Operation, error) {
	poller, _, err := c.begin(ctx, ref, change{}, running.ResumeToken)
	if err != nil { // of another version, or not ours: nobody can follow it
		return c.ended(ref, running, Operation{Lost: true}, nil)
	}
	polling, call := pace.With(c.onceOnly(ctx), ref)
	response, err := poller.Poll(polling) //nolint:bodyclose // the SDK has read it
	if err == nil && !poller.Done() && response.StatusCode >= http.StatusBadRequest {
		err = runtime.NewResponseError(response) // the poller takes it for a state
	}
	if isLost(err) {
		return c.ended(ref, running, Operation{Lost: true}, nil)
	}
	if err != nil {
		r := request{id: ref.ID, action: ref.Kind.ARMType() + "/read"}
		return Operation{ResumeToken: running.ResumeToken, After: call.After}, r.fail(err)
	}
	return c.progress(ctx, ref, running, poller, call)
}

// isLost reports whether ARM does not know an operation, or it is none of ARM's.
func isLost(err error) bool {
	if _, foreign := errors.AsType[*pace.ForeignHostError](err); foreign {
		return true
	}
	response, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && (response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusGone)
}

// begin sends a change, or goes on with the one that resume is of.
func (c *Client) begin(ctx context.Context, ref compute.Ref, change change, resume string) (poller, *pace.Call, error) {
	api, err := c.resources(ref)
	if err != nil {
		return nil, nil, err
	}
	ctx, call := pace.With(c.onceOnly(ctx), ref)
	out, err := api.begin(ctx, ref.ID, change, resume)
	return out, call, err
}

// onceOnly keeps the SDK from repeating a request: a PATCH whose answer was lost
// would meet its own change as a 412, as if nothing had been done, and a poll has
// its next time anyway.
func (c *Client) onceOnly(ctx context.Context) context.Context {
	return policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1, TryTimeout: c.timeout})
}

// progress says how an operation stands that was just begun or polled.
func (c *Client) progress(ctx context.Context, ref compute.Ref, running Running, poller poller, call *pace.Call) (Operation, error) {
	if token, err := poller.ResumeToken(); err == nil {
		return Operation{ResumeToken: token, After: call.After}, nil
	}
	ctx, last := pace.With(ctx, ref)
	result, err := poller.result(ctx)
	if err != nil && last.Tried == 0 {
		r := writeOf(ref, running)
		return c.ended(ref, running, Operation{}, c.noteThrottling(ref, r.fail(err)))
	}
	// It has succeeded. Whether the look at it did is another matter.
	var out Operation
	if shown, errShown := result.identities(ref.ID); err == nil && errShown == nil && shown.ETag != "" {
		out.Shown = &shown
	}
	return c.ended(ref, running, out, nil)
}

// noteThrottling keeps off a resource whose operation failed since a service
// behind ARM was asked too often.
func (c *Client) noteThrottling(ref compute.Ref, err error) error {
	if throttled, ok := errors.AsType[*ThrottledError](err); ok {
		c.pacer.Hold(pace.Target(ref), throttled.After)
	}
	return err
}

// ended tells of the end of a change.
func (c *Client) ended(ref compute.Ref, running Running, out Operation, err error) (Operation, error) {
	c.observe(Ended{Kind: ref.Kind, Operation: "update", Took: time.Since(running.Started), Err: err})
	return out, err
}

func writeOf(ref compute.Ref, running Running) request {
	return request{id: ref.ID, action: ref.Kind.ARMType() + "/write", add: running.Add}
}
