package world

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// Pod is a Pod object that is bound to a node, and the namespace in which its
// programs run.
type Pod struct {
	Object *corev1.Pod
	Node   *Node
	NS     *netns.NS
	Addr   netip.Addr
}

// NewPod returns the object of a pod with one container, for [Node.Run].
func NewPod(namespace, name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "main"}}},
	}
}

// Run does a scheduler's and a kubelet's part for a pod: creates the object,
// gives it a network, binds it to the node and reports it running with its
// address.
func (n *Node) Run(ctx context.Context, object *corev1.Pod) (*Pod, error) {
	pod, err := n.sandbox(object)
	if err != nil {
		return nil, fmt.Errorf("making the network of pod %s: %w", object.Name, err)
	}
	if err := n.world.Kube.Create(ctx, object); err != nil {
		return nil, fmt.Errorf("creating pod %s: %w", object.Name, err)
	}
	bind := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: n.Name}}
	if err := n.world.Kube.SubResource("binding").Create(ctx, object, bind); err != nil {
		return nil, fmt.Errorf("binding pod %s: %w", object.Name, err)
	}
	return pod, pod.SetStatus(ctx, corev1.PodRunning)
}

// SetStatus reports the phase of the pod and its address, as a kubelet would.
func (p *Pod) SetStatus(ctx context.Context, phase corev1.PodPhase) error {
	kube := p.Node.world.Kube
	if err := kube.Get(ctx, client.ObjectKeyFromObject(p.Object), p.Object); err != nil {
		return fmt.Errorf("reading pod %s: %w", p.Object.Name, err)
	}
	p.Object.Status.Phase = phase
	p.Object.Status.PodIP = p.Addr.String()
	p.Object.Status.PodIPs = []corev1.PodIP{{IP: p.Addr.String()}}
	if err := kube.Status().Update(ctx, p.Object); err != nil {
		return fmt.Errorf("reporting pod %s: %w", p.Object.Name, err)
	}
	return nil
}

// Delete removes the object at once and the pod's network.
func (p *Pod) Delete(ctx context.Context) error {
	if err := p.Node.world.Kube.Delete(ctx, p.Object, client.GracePeriodSeconds(0)); err != nil {
		return fmt.Errorf("deleting pod %s: %w", p.Object.Name, err)
	}
	return p.NS.Close()
}

// Command starts a program in the pod's network namespace, with the hosts file
// and the CA of the simulated Azure. The caller waits for it.
func (p *Pod) Command(ctx context.Context, path string, args ...string) *exec.Cmd {
	return p.Node.world.command(ctx, command{path: path, args: args})
}

// Start is [exec.Cmd.Start] in the pod's network namespace.
func (p *Pod) Start(cmd *exec.Cmd) error { return p.NS.Start(cmd) }

// sandbox gives a pod its network namespace and link.
func (n *Node) sandbox(object *corev1.Pod) (*Pod, error) {
	ns, err := n.world.namespace(object.Name)
	if err != nil {
		return nil, err
	}
	n.pods++
	pod := &Pod{Object: object, Node: n, NS: ns}
	link := fmt.Sprintf("veth%d", n.pods)
	if n.Layout == Bridge {
		return pod, pod.onBridge(link)
	}
	return pod, pod.pointToPoint(link)
}

func (p *Pod) onBridge(link string) error {
	p.Addr = p.Node.nth(1 + p.Node.pods)
	err := netns.Connect(
		netns.End{NS: p.Node.NS, Link: link, Bridge: "cni0"},
		netns.End{NS: p.NS, Link: "eth0", Addr: netip.PrefixFrom(p.Addr, 24)},
	)
	if err != nil {
		return err
	}
	return p.routeVia(p.Node.gateway())
}

// pointToPoint uses a pair of addresses per pod: the node's is even, the pod's
// odd.
func (p *Pod) pointToPoint(link string) error {
	near := p.Node.nth(2 * p.Node.pods)
	p.Addr = near.Next()
	err := netns.Connect(
		netns.End{NS: p.Node.NS, Link: link, Addr: netip.PrefixFrom(near, 31)},
		netns.End{NS: p.NS, Link: "eth0", Addr: netip.PrefixFrom(p.Addr, 31)},
	)
	if err != nil {
		return err
	}
	return p.routeVia(near)
}

// routeVia sends everything to the node, the metadata address too.
func (p *Pod) routeVia(node netip.Addr) error {
	if err := p.NS.SetRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), node); err != nil {
		return err
	}
	return p.NS.SetRoute(host(metadataAddr), node)
}

// nth returns the n-th address of the node's pods.
func (n *Node) nth(i int) netip.Addr {
	bytes := n.PodCIDR.Addr().As4()
	bytes[3] += byte(i) //nolint:gosec // a node has fewer than 120 pods
	return netip.AddrFrom4(bytes)
}
