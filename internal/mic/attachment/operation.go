package attachment

import (
	"context"
	"errors"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/apply"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

// An operation of ARM's takes from seconds to minutes, in which no worker waits.
// A pass that finds one running asks for it once and says when to come back. What
// the next pass, or the next leader, needs for that is in the record; what only
// makes it better is a pause, and lost with the process.

// pauses remembers the resources to which there is nothing to do before a time,
// so that an event for one does not bring its request early. The zero pauses is
// empty; it is safe for concurrent use.
type pauses struct {
	mu sync.Mutex
	of map[compute.Ref]pause // protected by mu
}

type pause struct {
	until time.Time
	// seen is what is known to be on the resource meanwhile; nil: nothing.
	seen *compute.Identities
	// busy says that ARM has said that somebody else's operation runs.
	busy bool
}

// take returns and forgets the resource's pause, and whether it has one.
func (p *pauses) take(ref compute.Ref) (last pause, paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, paused = p.of[ref]
	delete(p.of, ref)
	return last, paused
}

func (p *pauses) put(ref compute.Ref, value pause) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil {
		p.of = map[compute.Ref]pause{}
	}
	p.of[ref] = value
}

// held returns what keeps ARM from being asked about the resource: what it
// answered this leader, or the last one.
func (p *pass) held() error {
	until := p.record.Status.RetryAfter
	if until == nil {
		return p.holds.of(p.ref)
	}
	if failure := p.holds.of(p.ref); failure != nil {
		p.keepOff, p.keepScope = until, p.record.Status.RetryScope
		return failure
	}
	left := time.Until(until.Time)
	if left <= 0 {
		return nil
	}
	p.keepOff, p.keepScope = until, p.record.Status.RetryScope
	failure := &armclient.ThrottledError{After: left, Message: "it has asked the last leader to wait"}
	p.holds.set(p.ref, failure)
	return failure
}

// hold keeps ARM from being asked before it wants to.
func (p *pass) hold() {
	p.holds.set(p.ref, p.failure)
	if after := report.RetryAfter(p.failure); after > 0 {
		// The API keeps whole seconds, of which the last counts too.
		p.keepOff = &metav1.Time{Time: time.Now().Add(after + time.Second).Truncate(time.Second)}
		p.keepScope = scopeOf(p.failure)
	}
}

// pause ends the pass for the moment.
func (p *pass) pause(d time.Duration) {
	p.paused = max(d, time.Millisecond)
	p.pauses.put(p.ref, pause{until: p.options.Now().Add(p.paused), seen: p.seen, busy: p.busy})
}

// resume begins a pass where the last one paused: it waits on, or goes on with
// the operation that runs. It returns whether there may be more to do.
func (p *pass) resume(ctx context.Context) (more bool, err error) {
	last, paused := p.pauses.take(p.ref)
	if paused {
		p.seen, p.busy, p.remembered = last.seen, last.busy, false
	}
	if left := last.until.Sub(p.options.Now()); paused && left > 0 {
		p.pause(left)
		return false, nil
	}
	if p.operation = p.record.Status.LastOperation; p.operation != nil && p.operation.Result == v1.OperationRunning {
		return p.follow(ctx)
	}
	p.operation = nil
	if paused {
		p.seen = nil // too old to send a patch for
	}
	return true, nil
}

// send sends the patch, and notes what ARM answered. Failure is ARM's.
func (p *pass) send(ctx context.Context, patch *compute.Patch) (failure, err error) {
	p.needs = nil
	operation, failure := p.apply.Begin(ctx, p.ref, p.seen.ETag, patch)
	switch {
	case failure != nil:
		result := v1.OperationUnknown
		if _, sure := errors.AsType[*armclient.NotStartedError](failure); sure {
			result = v1.OperationFailed
		}
		p.ended(result, failure)
		return failure, nil
	case operation.ResumeToken == "":
		return nil, p.succeeded(ctx, operation.Shown)
	}
	// What is added is not there yet, and what is removed is not there any more.
	during := p.seen.Apply(&compute.Patch{Remove: patch.Remove, Type: p.seen.Type})
	during.Updating = true
	p.seen = &during
	p.operation = &v1.ARMOperation{StartTime: p.operation.StartTime, Result: v1.OperationRunning, ResumeToken: operation.ResumeToken}
	if err := p.apply.Note(ctx, p.record, p.operation); err != nil {
		return nil, err
	}
	if operation.After > 0 {
		p.pause(operation.After)
	}
	return nil, nil
}

// follow asks for the operation of this pass, unless it has ended or it is too
// early. It returns whether there may be more to do.
func (p *pass) follow(ctx context.Context) (more bool, err error) {
	switch {
	case p.paused > 0:
		return false, nil
	case p.operation.Result != v1.OperationRunning:
		return true, nil
	case p.operation.ResumeToken == "", p.options.Now().Sub(p.operation.StartTime.Time) > p.options.OperationTimeout:
		// Nobody heard ARM's answer, or has waited long enough for the end of it. If
		// the operation runs, the resource shows it.
		log.FromContext(ctx).Info("looking for what became of an operation", "started", p.operation.StartTime)
		p.ended(v1.OperationUnknown, nil)
		return true, nil
	}
	return p.poll(ctx)
}

// poll asks once for the operation that runs.
func (p *pass) poll(ctx context.Context) (more bool, err error) {
	p.needs = nil
	operation, failure := p.apply.Poll(ctx, p.ref, p.record, p.operation)
	switch {
	case operation.ResumeToken != "" && p.keptBack(failure):
		return false, nil
	case operation.ResumeToken != "":
		p.failure = failure // if there is one, nobody knows how it stands
		if failure != nil {
			return false, nil //nolint:nilerr // it is ARM's, and is reported
		}
		if operation.After <= 0 {
			operation.After = p.options.PollInterval
		}
		p.pause(operation.After)
		return false, nil
	case failure != nil:
		p.ended(v1.OperationFailed, failure)
		return p.recover(ctx, apply.Attaching(p.record), failure)
	case operation.Lost:
		p.ended(v1.OperationUnknown, nil)
		return true, nil
	}
	return true, p.succeeded(ctx, operation.Shown)
}

// confirmed are the records after a success. Those with an ETag are left to the
// plan, which sees that the resource has changed; without one it could not tell.
func confirmed(records []v1.OwnedIdentity) []v1.OwnedIdentity {
	var out []v1.OwnedIdentity
	for _, record := range records {
		if record.State == v1.OwnershipAttaching && record.ETag == "" {
			record.State = v1.OwnershipOwned
		}
		out = append(out, record)
	}
	return out
}

func (p *pass) succeeded(ctx context.Context, shown *compute.Identities) error {
	added := apply.Attaching(p.record)
	named, err := p.observe.Named(ctx, added)
	if err != nil {
		return err
	}
	p.ended(v1.OperationSucceeded, nil)
	if shown != nil {
		p.show(*shown)
	}
	p.quarantine = p.quarantine.Accept()
	for _, id := range added {
		p.unconfirmed[id] = named[id].ClientIDs
	}
	return p.apply.Record(ctx, p.record, confirmed(p.record.Spec.Owned))
}

// ended says how the operation ended. What is on the resource is to be seen.
func (p *pass) ended(result v1.OperationResult, failure error) {
	now := metav1.NewTime(p.options.Now())
	p.operation = &v1.ARMOperation{StartTime: p.operation.StartTime, CompletionTime: &now, Result: result}
	if failure != nil {
		p.operation.Message = failure.Error()
	}
	p.seen = nil
	var conflict *armclient.ConflictError
	p.busy = errors.As(failure, &conflict)
}

// mayPatch reports whether a patch can be sent now: ARM's limits allow it, and
// no operation is known to run that ARM would answer 409 for.
func (p *pass) mayPatch() bool {
	if p.busy && p.seen.Updating {
		p.failure = &armclient.ConflictError{ID: p.ref.ID, Message: "ARM shows that it is still updating"}
		p.pause(2 * p.options.PollInterval)
		return false
	}
	p.busy = false
	if err := p.apply.Ready(p.ref, p.record); !p.keptBack(err) {
		p.failure = err
	}
	return p.paused == 0 && p.failure == nil
}

// keptBack reports whether a request was not sent, to keep under ARM's limits.
// It comes when there is a token for it, and nobody needs to be told.
func (p *pass) keptBack(err error) bool {
	throttled, ok := errors.AsType[*armclient.ThrottledError](err)
	if !ok || !throttled.Own {
		return false
	}
	p.unasked = true
	p.pause(throttled.After)
	return true
}
