package uninstall

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
)

// readTimeout bounds what is read when the agents have ended, or not within their
// time.
const readTimeout = 30 * time.Second

// cluster is the API server, as far as the command needs it.
type cluster struct {
	options *Options
	kube    kubernetes.Interface
	reports dynamic.NamespaceableResourceInterface

	agents map[types.UID]*agent // all that were seen
}

func newCluster(o *Options) (*cluster, error) {
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	reports, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for node reports: %w", err)
	}
	return &cluster{
		options: o, kube: kube, agents: map[types.UID]*agent{},
		reports: reports.Resource(v1.GroupVersion.WithResource("azureidentitynodereports")),
	}, nil
}

// end deletes the DaemonSet and waits until its agents have ended, or the time is
// over. It returns all agents that it has seen.
func (c *cluster) end(ctx context.Context, w world) ([]agent, error) {
	wait, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	version, err := c.list(wait)
	if err != nil {
		return nil, err
	}
	deleted, err := c.deleteDaemonSet(wait)
	if err != nil {
		return nil, err
	}
	o := c.options
	if deleted {
		command.Sayf(w.stdout, "deleted DaemonSet %s/%s\n", o.Namespace, o.DaemonSet)
	} else {
		command.Sayf(w.stdout, "DaemonSet %s/%s is gone already\n", o.Namespace, o.DaemonSet)
	}
	if n := c.running(); n > 0 {
		command.Sayf(w.stdout, "waiting for %s to end, %s at most\n", count(n, "agent", "agents"), o.Timeout)
	}
	if err := c.wait(wait, version); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("waiting for the agents to end: %w", context.Cause(ctx))
	}
	if c.running() > 0 { // what is said of them is to be true now
		now, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		if _, err := c.list(now); err != nil {
			return nil, err
		}
	}
	out := make([]agent, 0, len(c.agents))
	for _, a := range c.agents {
		out = append(out, *a)
	}
	return out, nil
}

func (c *cluster) running() int {
	n := 0
	for _, a := range c.agents {
		if !a.ended {
			n++
		}
	}
	return n
}

// list reads which agents there are. Those that were seen before and are there no
// more have ended.
func (c *cluster) list(ctx context.Context) (version string, err error) {
	pods, err := c.kube.CoreV1().Pods(c.options.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("reading the agents' pods: %w", err)
	}
	for _, a := range c.agents {
		a.ended = true
	}
	for i := range pods.Items {
		c.see(&pods.Items[i], false)
	}
	return pods.ResourceVersion, nil
}

// see takes in how a pod is.
func (c *cluster) see(pod *corev1.Pod, ended bool) {
	now, ours := agentOf(pod, c.options.DaemonSet)
	if !ours {
		return
	}
	if before := c.agents[pod.UID]; before != nil {
		now.ran = now.ran || before.ran
	}
	now.ended = ended
	c.agents[pod.UID] = &now
}

// wait takes in what happens to pods, from a version on, until no agent is left or
// ctx ends.
func (c *cluster) wait(ctx context.Context, version string) error {
	pods := &cache.ListWatch{WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
		return c.kube.CoreV1().Pods(c.options.Namespace).Watch(ctx, options)
	}}
	for c.running() > 0 && ctx.Err() == nil {
		_, err := watchtools.Until(ctx, version, pods, func(event watch.Event) (bool, error) {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				return false, apierrors.FromObject(event.Object)
			}
			c.see(pod, event.Type == watch.Deleted)
			return c.running() == 0, nil
		})
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) { // the version is too old
			version, err = c.list(ctx)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("watching the agents' pods: %w", err)
		}
	}
	return nil
}

// deleteDaemonSet says whether it was there. Its agents end before it is gone, so
// that they find it being deleted.
func (c *cluster) deleteDaemonSet(ctx context.Context) (bool, error) {
	o := c.options
	sets := c.kube.AppsV1().DaemonSets(o.Namespace)
	set, err := sets.Get(ctx, o.DaemonSet, metav1.GetOptions{})
	if err == nil {
		foreground := metav1.DeletePropagationForeground
		err = sets.Delete(ctx, o.DaemonSet, metav1.DeleteOptions{PropagationPolicy: &foreground, Preconditions: metav1.NewUIDPreconditions(string(set.UID))})
	}
	switch {
	case apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		return false, nil
	case apierrors.IsConflict(err):
		return false, fmt.Errorf("deleting DaemonSet %s/%s, which somebody else makes anew meanwhile: stop what installs it, and repeat: %w", o.Namespace, o.DaemonSet, err)
	case err != nil:
		return false, fmt.Errorf("deleting DaemonSet %s/%s: %w", o.Namespace, o.DaemonSet, err)
	}
	return true, nil
}

// readReports returns what agents have said of their nodes; false if they do not
// report.
func (c *cluster) readReports(ctx context.Context) (reports []v1.AzureIdentityNodeReport, reporting bool, err error) {
	if c.options.ReportNamespace == "" {
		return nil, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	list, err := c.reports.Namespace(c.options.ReportNamespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) { // the kind is not defined
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading the nodes' reports: %w", err)
	}
	for i := range list.Items {
		var report v1.AzureIdentityNodeReport
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &report); err != nil {
			return nil, false, fmt.Errorf("reading the report of node %s: %w", list.Items[i].GetName(), err)
		}
		reports = append(reports, report)
	}
	return reports, true, nil
}

// stillThere returns those nodes that have an object, and says which of them do
// not answer.
func (c *cluster) stillThere(ctx context.Context, nodes []left) ([]left, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var out []left
	for _, l := range nodes {
		node, err := c.kube.CoreV1().Nodes().Get(ctx, l.node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading node %s: %w", l.node, err)
		}
		if !ready(node) {
			l.why += ", and the node is not ready"
		}
		out = append(out, l)
	}
	return out, nil
}

func ready(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
