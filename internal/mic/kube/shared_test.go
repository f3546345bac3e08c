package kube_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// informers are the cache's, which nothing but the test fills.
type informers struct {
	cache.Informers

	of map[string]toolscache.SharedIndexInformer
}

func (i informers) GetInformer(_ context.Context, object client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	kind := fmt.Sprintf("%T", object)
	if i.of[kind] == nil {
		i.of[kind] = toolscache.NewSharedIndexInformer(&toolscache.ListWatch{}, object, 0, toolscache.Indexers{})
	}
	return i.of[kind], nil
}

const (
	scaleSet   = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/pool"
	identities = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
)

// few is a small cluster: nodes 0 and 2 are of the scale set.
func few() []client.Object {
	var out []client.Object
	for i, providerID := range []string{"azure://" + scaleSet + "/virtualMachines/0", "gce://x", "azure://" + scaleSet + "/virtualMachines/7", ""} {
		node := fmt.Sprint("node-", i)
		out = append(out, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: corev1.NodeSpec{ProviderID: providerID}})
		for pod := range 3 {
			out = append(out, &v1.AzureAssignedIdentity{
				ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns-", pod%2), Name: fmt.Sprintf("%s-%d", node, pod)},
				Spec:       v1.AzureAssignedIdentitySpec{NodeName: node, PodNamespace: "apps", Pod: fmt.Sprint("pod-", pod)},
			})
		}
	}
	for i := range 3 {
		selector := fmt.Sprint("selector-", i%2)
		out = append(out,
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: fmt.Sprint("pod-", i), Labels: map[string]string{v1.PodLabel: selector}}},
			&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: fmt.Sprint("binding-", i)}, Spec: v1.AzureIdentityBindingSpec{Selector: selector, LegacySelector: "both"}},
		)
	}
	for i, spelling := range []string{"one", "ONE", "two"} {
		out = append(out, &v1.AzureIdentity{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("identity-", i)},
			Spec:       v1.AzureIdentitySpec{ResourceID: identities + spelling, ClientID: "bbbbbbbb-0000-4000-8000-000000000001"},
		})
	}
	return append(out, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "broken"}, Spec: v1.AzureIdentitySpec{ResourceID: "one"}})
}

// TestSharedFindsWhatTheClientDoes: the two ways to look something up are one.
func TestSharedFindsWhatTheClientDoes(t *testing.T) {
	scheme, err := kube.NewScheme()
	must(t, err)
	builder := fake.NewClientBuilder().WithScheme(scheme).WithObjects(few()...)
	must(t, kube.AddIndexes(t.Context(), indexer{builder}, nil))
	known := informers{of: map[string]toolscache.SharedIndexInformer{}}
	shared, err := kube.NewShared(t.Context(), known)
	must(t, err)
	for _, object := range few() {
		must(t, known.of[fmt.Sprintf("%T", object)].GetIndexer().Add(object))
	}
	reader := builder.Build()
	slow, fast := kube.Lookup{Reader: reader}, kube.Lookup{Reader: reader, Shared: shared}

	ref, err := compute.ParseRef(scaleSet)
	must(t, err)
	same(t, 2, func(l kube.Lookup) ([]*corev1.Node, error) { return l.NodesOf(t.Context(), ref) }, slow, fast)
	for nodes, want := range map[[2]string]int{{"node-0", "node-2"}: 6, {"node-1", "missing"}: 3, {"missing", ""}: 0} {
		same(t, want, func(l kube.Lookup) ([]*v1.AzureAssignedIdentity, error) {
			return l.AssignmentsOn(t.Context(), nodes[:]...)
		}, slow, fast)
	}
	for name, want := range map[string]int{"one": 2, "Two": 1, "three": 0} {
		id, err := armid.Parse(identities + name)
		must(t, err)
		same(t, want, func(l kube.Lookup) ([]*v1.AzureIdentity, error) { return l.Naming(t.Context(), id) }, slow, fast)
	}
	for selector, want := range map[string]int{"selector-0": 2, "selector-1": 1, "both": 3, "": 0} {
		same(t, want, func(l kube.Lookup) ([]*v1.AzureIdentityBinding, error) { return l.Bindings(t.Context(), selector) }, slow, fast)
		same(t, want%3, func(l kube.Lookup) ([]*corev1.Pod, error) { return l.PodsWith(t.Context(), selector) }, slow, fast)
	}
	for name, want := range map[string]int{"pod-0": 1, "pod-9": 0} {
		key := identity.Key{Namespace: "apps", Name: name}
		same(t, 4*want, func(l kube.Lookup) ([]*v1.AzureAssignedIdentity, error) { return l.AssignmentsOf(t.Context(), key) }, slow, fast)
		same(t, want, one(func(l kube.Lookup) (*corev1.Pod, error) { return l.Pod(t.Context(), key) }), slow, fast)
	}
	for name, want := range map[string]int{"node-0": 1, "node-9": 0} {
		same(t, want, one(func(l kube.Lookup) (*corev1.Node, error) { return l.Node(t.Context(), name) }), slow, fast)
		same(t, want, one(func(l kube.Lookup) (*v1.AzureAssignedIdentity, error) {
			return l.Assignment(t.Context(), "ns-0", name+"-0")
		}), slow, fast)
	}
	for name, want := range map[string]int{"broken": 1, "missing": 0} {
		same(t, want, one(func(l kube.Lookup) (*v1.AzureIdentity, error) {
			return l.Identity(t.Context(), identity.Key{Namespace: "ns", Name: name})
		}), slow, fast)
	}
}

// one is a look for a single object, which is nil if there is none.
func one[T any, P interface {
	*T
	client.Object
}](look func(kube.Lookup) (P, error)) func(kube.Lookup) ([]P, error) {
	return func(l kube.Lookup) ([]P, error) {
		object, err := look(l)
		if object == nil {
			return nil, err
		}
		return []P{object}, err
	}
}

func same[T client.Object](t *testing.T, want int, look func(kube.Lookup) ([]T, error), slow, fast kube.Lookup) {
	t.Helper()
	expected, err := look(slow)
	must(t, err)
	got, err := look(fast)
	must(t, err)
	if diff := cmp.Diff(names(expected), names(got)); diff != "" || len(got) != want {
		t.Errorf("%d are found, want %d (-client +shared):\n%s", len(got), want, diff)
	}
}

func names[T client.Object](objects []T) []string {
	out := make([]string, 0, len(objects))
	for _, o := range objects {
		out = append(out, o.GetNamespace()+"/"+o.GetName())
	}
	slices.Sort(out)
	return out
}

// TestSharedNeedsAnIndex: a cache that keeps a kind in several parts has none.
func TestSharedNeedsAnIndex(t *testing.T) {
	if _, err := kube.NewShared(t.Context(), parts{}); err == nil || !strings.Contains(err.Error(), "keep the kind of the whole cluster") {
		t.Errorf("what has no index is taken: %v", err)
	}
}

// parts are informers that have no index of their own.
type parts struct{ cache.Informers }

func (parts) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (cache.Informer, error) {
	return struct{ cache.Informer }{}, nil
}

type indexer struct{ *fake.ClientBuilder }

// IndexField adds an index to the client that is being built.
func (i indexer) IndexField(_ context.Context, object client.Object, field string, extract client.IndexerFunc) error {
	i.WithIndex(object, field, extract)
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
