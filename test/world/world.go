// Package world puts the main job together for the demo and the end-to-end
// tests: a simulated Azure, a real Kubernetes API server and etcd, two nodes and
// their pods, each in a network namespace of its own, and MIC and NMI as
// processes where they belong.
//
//	azure    holds 169.254.169.254, and ARM, Entra and Key Vault by their names
//	control  holds the API server and etcd
//	node N   routes between its pods, azure and control; NMI runs here
//	pod      has one link, to its node; MIC runs in one
//
// The metadata address is reached from a node by forwarding and is no address of
// the node, as in Azure, so that a missing rule shows. Nothing has a route out.
//
// There is no kubelet: pods are objects that a test binds to a node, and
// namespaces in which it starts programs. The package must not know what a
// scenario asserts.
package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// Options say where the programs are and where to write.
type Options struct {
	// Programs is the folder of mic, nmi, azuresim and demo.
	Programs string
	// Kubernetes is the folder of kube-apiserver and etcd.
	Kubernetes string
	// Dir takes state and logs; it must exist and be empty.
	Dir string
	// ARMLatency is how long a change of a scale set takes. In Azure it is 40 to
	// 60 seconds.
	ARMLatency time.Duration
	// Progress is told each step; nil for silence.
	Progress func(step string)
}

// World is everything that runs. Close it.
type World struct {
	options Options

	// Azure and Control are the namespaces of the simulator and the API server.
	Azure, Control *netns.NS
	// Nodes are the two nodes, with a bridge and with point-to-point links.
	Nodes []*Node
	// Sim sets the simulated Azure up and reads what it was asked.
	Sim *control.Client
	// Config and Kube have every right at the API server.
	Config *rest.Config
	Kube   client.WithWatch
	// Cloud is what exists in Azure from the start.
	Cloud Cloud

	apiserver, etcd *Process
	pki             *pki
	closers         []io.Closer
}

// New builds the world up to a ready API server, simulator and nodes. MIC and
// NMI are started by [World.StartMIC] and [Node.StartNMI].
func New(ctx context.Context, options Options) (*World, error) {
	w := &World{options: options}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"network namespaces without a route out", w.buildNetwork},
		{"azuresim: ARM, Entra, Key Vault and the metadata service", w.startAzure},
		{"etcd and kube-apiserver", w.startControlPlane},
		{"custom resource definitions, roles and service accounts", w.install},
		{"scale sets, identities and roles in Azure", w.furnish},
		{"nodes", w.registerNodes},
	} {
		w.progress(step.name)
		if err := step.run(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("starting %s: %w", step.name, err), w.Close())
		}
	}
	return w, nil
}

// Close ends every process and removes every namespace.
func (w *World) Close() error {
	var errs []error
	for _, closer := range slices.Backward(w.closers) {
		errs = append(errs, closer.Close())
	}
	w.closers = nil
	return errors.Join(errs...)
}

// path names a file or folder of the world's own.
func (w *World) path(elements ...string) string {
	return filepath.Join(append([]string{w.options.Dir}, elements...)...)
}

// Logs returns the folder of the programs' logs.
func (w *World) Logs() string { return w.path("logs") }

func (w *World) progress(step string) {
	if w.options.Progress != nil {
		w.options.Progress(step)
	}
}

func (w *World) keep(c io.Closer) { w.closers = append(w.closers, c) }

func (w *World) program(name string) string { return filepath.Join(w.options.Programs, name) }

// startAzure runs the simulator in its namespace.
func (w *World) startAzure(ctx context.Context) error {
	_, err := w.start(ctx, command{
		name: "azuresim", ns: w.Azure, path: w.program("azuresim"),
		args: []string{
			"--https-address=" + azureAddr.String() + ":443",
			"--imds-address=" + metadataAddr.String() + ":80",
			"--control-address=127.0.0.1:8090",
			"--ca-cert=" + w.caFile(),
			"--arm-latency=" + w.options.ARMLatency.String(),
		},
	})
	if err != nil {
		return err
	}
	dial := &http.Transport{DialContext: w.Azure.DialContext}
	w.Sim = control.New("http://127.0.0.1:8090", &http.Client{Transport: dial})
	return await(ctx, "the simulator", func() error { return w.Sim.Ready(ctx) })
}

func (w *World) caFile() string { return w.path("azure-ca.pem") }

// Transport reaches the simulator's services and the metadata address from
// inside a namespace, as a program there would.
func (w *World) Transport(ctx context.Context, ns *netns.NS) (*http.Transport, error) {
	pool, err := w.Sim.Pool(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the simulator's CA: %w", err)
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return ns.DialContext(ctx, network, resolve(address))
	}
	return &http.Transport{DialContext: dial, TLSClientConfig: tlsConfig(pool), DisableKeepAlives: true}, nil
}
