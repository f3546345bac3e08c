package report

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

const (
	// repeatAfter is how long one warning about one pod is not repeated.
	repeatAfter = 10 * time.Minute
	// maxWarnings bounds what is remembered of warnings.
	maxWarnings = 4096
)

// Events write warnings as Events on pods, in the background. A pod that asks
// in vain once a second gets one Event.
type Events struct {
	recorder record.EventRecorder
	now      func() time.Time

	mu   sync.Mutex // protects all following fields
	last map[warning]time.Time
}

type warning struct {
	pod     types.UID
	reason  v1.Reason
	message string
}

// NewEvents returns events that are written until ctx ends.
func NewEvents(ctx context.Context, config *rest.Config, node string) (*Events, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for events: %w", err)
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	context.AfterFunc(ctx, broadcaster.Shutdown)
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "nmi", Host: node})
	return &Events{recorder: recorder, now: time.Now, last: map[warning]time.Time{}}, nil
}

// Warn writes a warning Event on the pod, unless it did so a while ago.
func (e *Events) Warn(pod identity.Key, uid types.UID, reason v1.Reason, message string) {
	if !e.due(warning{uid, reason, message}) {
		return
	}
	reference := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: uid}
	e.recorder.Event(reference, corev1.EventTypeWarning, string(reason), message)
}

func (e *Events) due(w warning) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	if last, ok := e.last[w]; ok && now.Sub(last) < repeatAfter {
		return false
	}
	if len(e.last) >= maxWarnings {
		// Worst of all, something is said twice.
		clear(e.last)
	}
	e.last[w] = now
	return true
}
