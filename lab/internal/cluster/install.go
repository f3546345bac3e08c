package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// patience bounds each wait for the cluster.
const patience = 3 * time.Minute

// install waits for the API server, applies what every lab has and waits until
// all nodes and the cluster's DNS are ready.
func (l *Lab) install(ctx context.Context, lab topology.Lab) error {
	start := time.Now()
	step := func(what string) { l.progress("%s (%.1fs)", what, time.Since(start).Seconds()) }
	kube, err := l.awaitAPI(ctx, lab)
	if err != nil {
		return err
	}
	step("API server ready")
	ca, err := os.ReadFile(l.paths().AzureCA())
	if err != nil {
		return fmt.Errorf("reading the simulator's CA: %w", err)
	}
	if err := apply(ctx, kube, render.Manifests(lab, ca)); err != nil {
		return err
	}
	if err := await(ctx, "the nodes", patience, l.whileAlive(lab, func(ctx context.Context) error { return nodesReady(ctx, kube, len(lab.Nodes)) })); err != nil {
		return err
	}
	step("nodes Ready")
	for _, wait := range []struct {
		what  string
		check func(context.Context) error
	}{
		{"the default service account", func(ctx context.Context) error {
			return kube.Get(ctx, client.ObjectKey{Namespace: "default", Name: "default"}, &corev1.ServiceAccount{})
		}},
		{"DNS", func(ctx context.Context) error { return available(ctx, kube, "kube-system", "coredns") }},
	} {
		if err := await(ctx, wait.what, patience, l.whileAlive(lab, wait.check)); err != nil {
			return err
		}
	}
	step("DNS ready")
	return nil
}

// kube returns a client with every right.
func (l *Lab) kube() (client.Client, error) {
	config, err := l.restConfig()
	if err != nil {
		return nil, err
	}
	kube, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return nil, fmt.Errorf("reaching the API server: %w", err)
	}
	return kube, nil
}

func (l *Lab) restConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.paths().Kubeconfig("admin"))
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config.QPS = -1 // no limit: it is our own API server
	config.Timeout = 10 * time.Second
	return config, nil
}

// awaitAPI waits until the API server says that it is ready.
func (l *Lab) awaitAPI(ctx context.Context, lab topology.Lab) (client.Client, error) {
	config, err := l.restConfig()
	if err != nil {
		return nil, err
	}
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	ready := func(ctx context.Context) error { return probe(ctx, http, config.Host+"/readyz") }
	if err := await(ctx, "the API server", patience, l.whileAlive(lab, ready)); err != nil {
		return nil, fmt.Errorf("%w; kube-apiserver: %s", err, l.lastWords(lab.Nodes[0].Name(), "kube-apiserver"))
	}
	return l.kube()
}

// apply applies every object of a manifest, with strict validation.
func apply(ctx context.Context, kube client.Client, manifest string) error {
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a manifest: %w", err)
		}
		if len(object.Object) == 0 {
			continue
		}
		err = kube.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("lab"), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("applying %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

func nodesReady(ctx context.Context, kube client.Client, want int) error {
	var list corev1.NodeList
	if err := kube.List(ctx, &list); err != nil {
		return err
	}
	var waiting []string
	ready := 0
	for i := range list.Items {
		if reason := notReady(&list.Items[i]); reason != "" {
			waiting = append(waiting, list.Items[i].Name+": "+reason)
			continue
		}
		ready++
	}
	if ready < want {
		return fmt.Errorf("%d of %d nodes are ready; %s", ready, want, strings.Join(waiting, "; "))
	}
	return nil
}

// notReady says why a node is not ready; nothing if it is.
func notReady(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return ""
			}
			return c.Message
		}
	}
	return "its kubelet has not reported yet"
}

func available(ctx context.Context, kube client.Client, namespace, name string) error {
	var d appsv1.Deployment
	if err := kube.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &d); err != nil {
		return err
	}
	if d.Status.AvailableReplicas < 1 || d.Status.ObservedGeneration < d.Generation {
		return fmt.Errorf("deployment %s has no available pod", name)
	}
	return nil
}
