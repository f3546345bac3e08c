// Package untaint takes the startup taint from a node once the agent is ready
// there, so that no pod runs on a node where nothing stands between it and the
// node's own identity.
//
// It reads nodes and the agent's pods. It must not put a taint on a node, nor take
// another one away.
package untaint

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
	"github.com/aad-pod-identity/aad-pod-identity/internal/startuptaint"
)

// The agent's pods are those of the controller's own namespace with this label,
// which the chart and the manifests give them.
const (
	componentLabel = "app.kubernetes.io/component"
	component      = "nmi"
)

// byNode is the index of the agent's pods.
const byNode = "node"

// longestRun is far above what the API server takes for one write.
const longestRun = 5 * time.Minute

// Options configure the controller.
type Options struct {
	// Key is the taint's.
	Key string
	// Namespace is where the agent's pods are.
	Namespace string
	// Watchdog may be nil.
	Watchdog *watchdog.Watchdog
	Log      *slog.Logger
}

// due reports whether a node's startup taint is to go: one of the agent's pods
// there is ready, and stays.
func due(taints []corev1.Taint, key string, agents []corev1.Pod) bool {
	if !startuptaint.On(taints, key) {
		return false
	}
	for _, pod := range agents {
		if pod.DeletionTimestamp == nil && ready(pod.Status) {
			return true
		}
	}
	return false
}

func ready(status corev1.PodStatus) bool {
	for _, c := range status.Conditions {
		if c.Type == corev1.PodReady {
			return status.Phase == corev1.PodRunning && c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Register adds the controller to the manager, with a cache of the agent's pods
// of its own: that of the manager holds pods with identities.
func Register(ctx context.Context, mgr manager.Manager, o Options) error {
	agents, err := cache.New(mgr.GetConfig(), cache.Options{
		Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(), HTTPClient: mgr.GetHTTPClient(),
		ReaderFailOnMissingInformer: true,
		ByObject: map[client.Object]cache.ByObject{&corev1.Pod{}: {
			Namespaces: map[string]cache.Config{o.Namespace: {}}, Label: labels.SelectorFromSet(labels.Set{componentLabel: component}), Transform: trim,
		}},
	})
	if err != nil {
		return fmt.Errorf("preparing the watch of the agent's pods: %w", err)
	}
	if err := agents.IndexField(ctx, &corev1.Pod{}, byNode, nodeOf); err != nil {
		return fmt.Errorf("indexing the agent's pods: %w", err)
	}
	if err := mgr.Add(agents); err != nil {
		return fmt.Errorf("adding the watch of the agent's pods: %w", err)
	}
	c, err := controller.New("startup-taint", mgr, controller.Options{
		Reconciler:              watchdog.Watch(o.Watchdog, "startup-taint", longestRun, reconcile.Reconciler(&reconciler{mgr.GetClient(), agents, o})),
		MaxConcurrentReconciles: 4,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, time.Minute),
	})
	if err != nil {
		return fmt.Errorf("adding the startup taint's controller: %w", err)
	}
	tainted := predicate.NewTypedPredicateFuncs(func(n *corev1.Node) bool { return startuptaint.On(n.Spec.Taints, o.Key) })
	if err := c.Watch(source.Kind(mgr.GetCache(), &corev1.Node{}, &handler.TypedEnqueueRequestForObject[*corev1.Node]{}, tainted)); err != nil {
		return fmt.Errorf("watching nodes: %w", err)
	}
	if err := c.Watch(source.Kind(agents, &corev1.Pod{}, kube.Touched(requests))); err != nil {
		return fmt.Errorf("watching the agent's pods: %w", err)
	}
	return nil
}

// requests are the node that a pod runs on, if it is bound to one.
func requests(_ context.Context, pod *corev1.Pod) []reconcile.Request {
	if pod.Spec.NodeName == "" {
		return nil
	}
	return []reconcile.Request{kube.Request(identity.Key{Name: pod.Spec.NodeName})}
}

func nodeOf(object client.Object) []string {
	pod, ok := object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return nil
	}
	return []string{pod.Spec.NodeName}
}

// trim keeps of an agent's pod where it is, and how.
func trim(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	out := &corev1.Pod{Spec: corev1.PodSpec{NodeName: pod.Spec.NodeName}, Status: corev1.PodStatus{Phase: pod.Status.Phase, Conditions: pod.Status.Conditions}}
	out.Namespace, out.Name, out.UID, out.ResourceVersion = pod.Namespace, pod.Name, pod.UID, pod.ResourceVersion
	out.DeletionTimestamp = pod.DeletionTimestamp
	return out, nil
}

type reconciler struct {
	client  client.Client
	agents  client.Reader
	options Options
}

// Reconcile looks at one node. What was changed meanwhile is looked at again.
func (r *reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var node corev1.Node
	if err := r.client.Get(ctx, request.NamespacedName, &node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var agents corev1.PodList
	if err := r.agents.List(ctx, &agents, client.MatchingFields{byNode: node.Name}); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing the agent's pods of node %s: %w", node.Name, err)
	}
	if !due(node.Spec.Taints, r.options.Key, agents.Items) {
		return reconcile.Result{}, nil
	}
	patch, err := startuptaint.Patch(&node, r.options.Key)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.client.Patch(ctx, &node, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(fmt.Errorf("taking the startup taint from node %s: %w", node.Name, err))
	}
	r.options.Log.Info("took the startup taint away: the agent is ready", obs.KeyNode, node.Name, "taint", r.options.Key)
	return reconcile.Result{}, nil
}
