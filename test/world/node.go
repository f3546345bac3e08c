package world

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// Layout is how a node's CNI links its pods.
type Layout string

// The layouts of the two nodes.
const (
	// Bridge puts all pods of the node on one bridge.
	Bridge Layout = "bridge"
	// PointToPoint gives each pod a link of its own, as on AKS.
	PointToPoint Layout = "point-to-point"
)

// Node is one node: a network namespace and a Node object.
type Node struct {
	world  *World
	number int
	pods   int

	NS      *netns.NS
	Name    string
	Layout  Layout
	Addr    netip.Addr   // from which the node asks the metadata service
	PodCIDR netip.Prefix // of which its pods have their addresses

	// RedirectTarget is where its NMI leads pods to; "" for NMI's default.
	RedirectTarget string
}

// The ports on which NMI serves a node's own programs.
const (
	nmiProbePort   = "8085"
	nmiMetricsPort = "9090"
	// NMIPort is where NMI answers programs of the node, on its loopback.
	NMIPort = "2579"
)

func (n *Node) gateway() netip.Addr { return n.PodCIDR.Addr().Next() }

// StartNMI starts NMI on the node, in the given mode, and waits until it is
// ready. Further arguments are NMI's flags.
func (n *Node) StartNMI(ctx context.Context, mode string, flags ...string) (*Process, error) {
	process, err := n.LaunchNMI(ctx, append([]string{"--operation-mode=" + mode}, flags...)...)
	if err != nil {
		return nil, err
	}
	return process, n.AwaitNMI(ctx, process)
}

// LaunchNMI starts NMI and waits for nothing.
func (n *Node) LaunchNMI(ctx context.Context, flags ...string) (*Process, error) {
	kubeconfig, err := n.world.kubeconfig(ctx, nmiAccount, "nmi-"+n.Name)
	if err != nil {
		return nil, err
	}
	if n.RedirectTarget != "" {
		flags = append([]string{"--redirect-target=" + n.RedirectTarget}, flags...)
	}
	return n.world.start(ctx, command{
		name: "nmi-" + n.Name, ns: n.NS, path: n.world.program("nmi"),
		args: append([]string{
			"--node=" + n.Name,
			"--http-probe-port=" + nmiProbePort,
			"--prometheus-port=" + nmiMetricsPort,
			"-v=5",
		}, flags...),
		env: []string{"KUBECONFIG=" + kubeconfig},
	})
}

// AwaitNMI waits until NMI says that it is ready, or for its end.
func (n *Node) AwaitNMI(ctx context.Context, process *Process) error {
	return await(ctx, "NMI on "+n.Name, process.whileRunning(func() error { return n.probe(ctx, "/readyz") }))
}

// probe asks NMI's probe port from the node itself.
func (n *Node) probe(ctx context.Context, path string) error {
	client := &http.Client{Transport: &http.Transport{DialContext: n.NS.DialContext, DisableKeepAlives: true}}
	return expectOK(ctx, client, "http://127.0.0.1:"+nmiProbePort+path)
}

func (w *World) registerNodes(ctx context.Context) error {
	for _, n := range w.Nodes {
		object := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{"kubernetes.io/os": "linux"}},
			Spec: corev1.NodeSpec{
				ProviderID: fmt.Sprintf("azure://%s/virtualMachines/%d", scaleSetID(n.number), 0),
				PodCIDR:    n.PodCIDR.String(),
			},
		}
		if err := w.Kube.Create(ctx, object); err != nil {
			return fmt.Errorf("creating node %s: %w", n.Name, err)
		}
	}
	return nil
}

// CountLeaks begins to count the packets of the node's pods that reach the
// metadata service, as they arrive at its side of the wire.
func (n *Node) CountLeaks() (*netns.Counter, error) {
	return n.world.Azure.CountArrivalsFrom(n.Name, n.PodCIDR, metadataAddr)
}

// LaunchNMIUnprivileged starts NMI without any capability, on ports of its own.
func (n *Node) LaunchNMIUnprivileged(ctx context.Context) (*Process, error) {
	kubeconfig, err := n.world.kubeconfig(ctx, nmiAccount, "nmi-"+n.Name)
	if err != nil {
		return nil, err
	}
	return n.world.start(ctx, command{
		name: "nmi-unprivileged", ns: n.NS, path: "/usr/bin/setpriv",
		args: []string{"--bounding-set=-all", "--inh-caps=-all", n.world.program("nmi"), "--node=" + n.Name, "--http-probe-port=18085", "--prometheus-port=19090", "--nmi-port=12579"},
		env:  []string{"KUBECONFIG=" + kubeconfig},
	})
}
