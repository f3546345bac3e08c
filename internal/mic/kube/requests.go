package kube

import (
	"context"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// Request is the queue's form of a key.
func Request(key identity.Key) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: key.Namespace, Name: key.Name}}
}

// KeyOf is the key of a request.
func KeyOf(r reconcile.Request) identity.Key {
	return identity.Key{Namespace: r.Namespace, Name: r.Name}
}

// Touched returns a handler that queues what the object touches, before and
// after an update.
func Touched[T any, R comparable](touches func(ctx context.Context, object T) []R) handler.TypedEventHandler[T, R] {
	return handler.TypedFuncs[T, R]{
		CreateFunc: func(ctx context.Context, e event.TypedCreateEvent[T], q workqueue.TypedRateLimitingInterface[R]) {
			add(q, touches(ctx, e.Object))
		},
		UpdateFunc: func(ctx context.Context, e event.TypedUpdateEvent[T], q workqueue.TypedRateLimitingInterface[R]) {
			add(q, touches(ctx, e.ObjectOld))
			add(q, touches(ctx, e.ObjectNew))
		},
		DeleteFunc: func(ctx context.Context, e event.TypedDeleteEvent[T], q workqueue.TypedRateLimitingInterface[R]) {
			add(q, touches(ctx, e.Object))
		},
	}
}

func add[R comparable](q workqueue.TypedRateLimitingInterface[R], items []R) {
	for _, item := range items {
		q.Add(item)
	}
}

// After returns a reconciler that begins when begin has returned without an
// error.
func After[R comparable](begin func(context.Context) error, next reconcile.TypedReconciler[R]) reconcile.TypedReconciler[R] {
	return reconcile.TypedFunc[R](func(ctx context.Context, request R) (reconcile.Result, error) {
		if err := begin(ctx); err != nil {
			return reconcile.Result{}, err
		}
		return next.Reconcile(ctx, request)
	})
}
