package assignment

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// departed are the pods that the cache has seen end, or lose the label, and that have
// no successor of their name, until nothing is left of them. Of such a pod nobody
// needs to ask the API server whether it is really gone. The zero departed is empty; it is safe for
// concurrent use.
type departed struct {
	mu   sync.Mutex
	pods map[identity.Key]struct{} // protected by mu
}

func (d *departed) add(pod identity.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pods == nil {
		d.pods = map[identity.Key]struct{}{}
	}
	d.pods[pod] = struct{}{}
}

func (d *departed) forget(pod identity.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pods, pod)
}

func (d *departed) has(pod identity.Key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.pods[pod]
	return ok
}

// onPod queues a pod that changes, and notes one that departs. Each that is noted is
// queued, so that its last visit forgets it.
type onPod struct {
	handler.TypedEnqueueRequestForObject[*corev1.Pod]

	departed *departed
}

// Delete implements [handler.TypedEventHandler].
func (h *onPod) Delete(ctx context.Context, e event.TypedDeleteEvent[*corev1.Pod], q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	if kube.NamedOnce(e.Object) {
		h.departed.add(identity.Key{Namespace: e.Object.Namespace, Name: e.Object.Name})
	}
	h.TypedEnqueueRequestForObject.Delete(ctx, e, q)
}
