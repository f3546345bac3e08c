package attachment

import (
	"context"
	"errors"
	"sync"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// waits is what ARM asked the leaders before this one, of whole subscriptions: the
// resource that was told is not the one that this leader may ask for first.
type waits struct {
	mu   sync.Mutex
	kept bool // protected by mu
}

// keepWaits has ARM left alone as the records say, before this leader's first
// request.
func (r *Reconciler) keepWaits(ctx context.Context) error {
	r.waits.mu.Lock()
	defer r.waits.mu.Unlock()
	if r.waits.kept {
		return nil
	}
	records, err := r.lookup.Attachments(ctx)
	if err != nil {
		return err
	}
	for _, record := range records {
		ref, err := compute.ParseRef(record.Spec.ResourceID)
		if left := subscriptionWait(record.Status); err == nil && left > 0 {
			r.arm.KeepOff(ref, left)
		}
	}
	r.waits.kept = true
	return nil
}

// subscriptionWait is how long ARM wants the whole subscription left alone.
func subscriptionWait(status v1.AzureIdentityAttachmentStatus) time.Duration {
	if status.RetryAfter == nil || status.RetryScope != v1.RetryScopeSubscription {
		return 0
	}
	return time.Until(status.RetryAfter.Time)
}

// scopeOf is what a failure asks to leave alone.
func scopeOf(failure error) v1.RetryScope {
	throttled, ok := errors.AsType[*armclient.ThrottledError](failure)
	if !ok {
		return ""
	}
	switch throttled.Scope {
	case throttle.Resource:
		return v1.RetryScopeResource
	case throttle.Subscription, throttle.Principal:
		return v1.RetryScopeSubscription
	}
	return ""
}
