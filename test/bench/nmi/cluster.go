package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

const (
	namespace = "bench"
	// manyPods of the pods share fewIdentities of the identities. The others are
	// split into groups, each pod of a group having all of the group's.
	manyPods, fewIdentities = 64, 8
	groups                  = 62
	identityGroup           = "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/bench/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
)

// cluster says which pods and identities there are, and who may use what.
type cluster struct{ options options }

func newCluster(o options) cluster { return cluster{o} }

func (c cluster) address(pod int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 0, 1, byte(pod + 1)}) //nolint:gosec // there are 250
}

func (c cluster) addresses() []netip.Addr {
	var out []netip.Addr
	for pod := range c.options.pods {
		out = append(out, c.address(pod))
	}
	return out
}

func (c cluster) clientID(id int) string { return fmt.Sprintf("bbbbbbbb-0000-4000-8000-%012d", id) }

func (c cluster) armID(id int) string { return identityGroup + fmt.Sprint("id-", id) }

// selectorOf returns the label of a pod, selectorFor the selector of an identity's
// binding.
func selectorOf(pod int) string {
	if pod < manyPods {
		return "many"
	}
	return fmt.Sprint("group-", (pod-manyPods)%groups)
}

func selectorFor(id int) string {
	if id < fewIdentities {
		return "many"
	}
	return fmt.Sprint("group-", (id-fewIdentities)%groups)
}

// identitiesOf returns the identities that a pod may use.
func (c cluster) identitiesOf(pod int) []int {
	var out []int
	for id := range c.options.identities {
		if selectorFor(id) == selectorOf(pod) {
			out = append(out, id)
		}
	}
	return out
}

// warmTarget is what a pod asks for again and again: the first of its identities.
func (c cluster) warmTarget(pod int) string {
	return tokenTarget(c.clientID(c.identitiesOf(pod)[0]), vault)
}

// key is a token that somebody may have.
type key struct {
	pod    int
	target string
}

// keys returns the first n tokens of the groups' pods, each another one.
func (c cluster) keys(n int) []key {
	var out []key
	for _, resource := range []string{vault, "https://management.azure.com"} {
		for id := fewIdentities; id < c.options.identities && len(out) < n; id++ {
			pod := manyPods + (id-fewIdentities)%groups
			out = append(out, key{pod, tokenTarget(c.clientID(id), resource)})
		}
	}
	return out
}

// create makes the objects, many at a time.
func (c cluster) create(ctx context.Context, kube client.Client, node string) error {
	if err := kube.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return fmt.Errorf("making the namespace: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(16)
	for object := range slices.Values(slices.Concat(c.identityObjects(), c.accountObjects())) {
		group.Go(func() error { return kube.Create(ctx, object) })
	}
	for pod := range c.options.pods {
		group.Go(func() error { return c.createPod(ctx, kube, pod, node) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("making objects: %w", err)
	}
	return nil
}

func (c cluster) createPod(ctx context.Context, kube client.Client, pod int, node string) error {
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("pod-", pod), Labels: map[string]string{v1.PodLabel: selectorOf(pod)}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: fmt.Sprint("account-", pod), Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if err := kube.Create(ctx, object); err != nil {
		return err
	}
	address := c.address(pod).String()
	object.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}}
	return kube.Status().Update(ctx, object)
}

func (c cluster) identityObjects() []client.Object {
	var out []client.Object
	for id := range c.options.identities {
		name := fmt.Sprint("id-", id)
		out = append(out,
			&v1.AzureIdentity{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
				Spec:       v1.AzureIdentitySpec{ClientID: c.clientID(id), ResourceID: c.armID(id)},
			},
			&v1.AzureIdentityBinding{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
				Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: name, Selector: selectorFor(id)},
			})
	}
	return out
}

func (c cluster) accountObjects() []client.Object {
	var out []client.Object
	for account := range c.options.accounts {
		out = append(out, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("account-", account)}})
	}
	return out
}
