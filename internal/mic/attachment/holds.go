package attachment

import (
	"errors"
	"sync"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

// holds remembers which resources ARM asked to leave alone, and until when, so
// that an event for one does not bring it back early. The zero holds is empty;
// it is safe for concurrent use.
type holds struct {
	mu    sync.Mutex
	until map[compute.Ref]hold // protected by mu
}

type hold struct {
	until   time.Time
	failure error
}

// of returns what keeps the resource, with the time that is left of it; nil if
// nothing does.
func (h *holds) of(ref compute.Ref) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	held, ok := h.until[ref]
	left := time.Until(held.until)
	if !ok || left <= 0 {
		delete(h.until, ref)
		return nil
	}
	if throttled, ok := errors.AsType[*armclient.ThrottledError](held.failure); ok {
		return &armclient.ThrottledError{After: left, Scope: throttled.Scope, Message: throttled.Message}
	}
	if unavailable, ok := errors.AsType[*armclient.UnavailableError](held.failure); ok {
		return &armclient.UnavailableError{After: left, Err: unavailable.Err}
	}
	return nil
}

// set keeps the resource for as long as the failure asks for.
func (h *holds) set(ref compute.Ref, failure error) {
	after := report.RetryAfter(failure)
	if after <= 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.until == nil {
		h.until = map[compute.Ref]hold{}
	}
	h.until[ref] = hold{until: time.Now().Add(after), failure: failure}
}
