package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

const (
	scaleSets  = 4
	machines   = 2
	identities = 20
	lease      = 4 * time.Second // of the controllers; real time
	namespace  = "default"
)

// world is what trouble is made in.
type world struct {
	options options
	random  *rand.Rand
	cluster *replica.Cluster
	azure   *replica.Azure
	fleet   *fleet

	pods    []string // that live
	made    int      // pods, ever
	bursts  int
	foreign map[string]bool // "resource identity", lower case, that somebody else attached
}

func newWorld(ctx context.Context, o options, dir string) (*world, error) {
	w := &world{options: o, random: rand.New(rand.NewPCG(o.seed, 7)), foreign: map[string]bool{}} //nolint:gosec // repeatable
	throttling := settings.DocumentedThrottling()
	azure := settings.Settings{ClockFactor: o.factor, Seed: o.seed, ARM: settings.ARM{Latency: settings.DocumentedLatency(), Throttling: &throttling}}
	var err error
	if w.cluster, err = replica.StartCluster(ctx, dir); err == nil {
		w.azure, err = replica.StartAzure(ctx, dir, azure)
	}
	if err == nil {
		err = w.furnish(ctx)
	}
	if err == nil {
		w.fleet, err = startFleet(ctx, w)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) close() error {
	var failures []error
	if w.fleet != nil {
		failures = append(failures, w.fleet.close())
	}
	if w.azure != nil {
		failures = append(failures, w.azure.Close())
	}
	if w.cluster != nil {
		failures = append(failures, w.cluster.Close())
	}
	return errors.Join(failures...)
}

// resource is the n-th scale set or virtual machine, on which node n runs.
func resource(n int) string {
	if n < scaleSets {
		return replica.ScaleSetID(n)
	}
	return replica.MachineID(n)
}

func nodeName(n int) string     { return fmt.Sprintf("node-%d", n) }
func identityName(n int) string { return fmt.Sprintf("identity-%d", n) }

// furnish makes the resources with a node each, and the identities; two more are
// for others to attach.
func (w *world) furnish(ctx context.Context) error {
	var doc model.Document
	for n := range scaleSets + machines {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(n)}}
		if n < scaleSets {
			doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: resource(n)})
			node.Spec.ProviderID = "azure://" + resource(n) + "/virtualMachines/0"
		} else {
			doc.VirtualMachines = append(doc.VirtualMachines, model.VirtualMachine{ID: resource(n)})
			node.Spec.ProviderID = "azure://" + resource(n)
		}
		if err := w.cluster.Kube.Create(ctx, node); err != nil {
			return fmt.Errorf("creating node %d: %w", n, err)
		}
	}
	for n := range identities + 2 {
		doc.Identities = append(doc.Identities, model.Identity{ID: replica.ManagedID(n), ClientID: replica.ClientID(n)})
	}
	if _, err := w.azure.Sim.State.Add(doc); err != nil {
		return fmt.Errorf("furnishing Azure: %w", err)
	}
	for n := range identities {
		if err := w.bind(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) bind(ctx context.Context, n int) error {
	meta := metav1.ObjectMeta{Namespace: namespace, Name: identityName(n)}
	identity := &v1.AzureIdentity{ObjectMeta: meta, Spec: v1.AzureIdentitySpec{ResourceID: replica.ManagedID(n), ClientID: replica.ClientID(n)}}
	binding := &v1.AzureIdentityBinding{ObjectMeta: meta, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: meta.Name, Selector: meta.Name}}
	if err := errors.Join(w.cluster.Kube.Create(ctx, identity), w.cluster.Kube.Create(ctx, binding)); err != nil {
		return fmt.Errorf("creating identity %d: %w", n, err)
	}
	return nil
}
