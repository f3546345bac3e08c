package kube

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// The indexes, by the name that a lookup gives.
const (
	bySelector = "selector" // pods and bindings
	byIdentity = "identity" // bindings
	byPod      = "pod"      // assignments
	byNode     = "node"     // assignments
	byRef      = "ref"      // nodes
	byResource = "resource" // identities: the managed identity that one names
	byRefused  = "refused"  // attachments: the managed identities that are in trouble there
)

// index finds the objects of a kind.
type index struct {
	object client.Object
	name   string
	keys   client.IndexerFunc
	shared *toolscache.Indexer // where a [Shared] has it; nil: it has not
}

// indexes are all that there are. Those that a Shared answers by say where in s they
// belong.
func indexes(s *Shared) []index {
	return []index{
		{&corev1.Node{}, byRef, of(refOf), &s.nodes},
		{&corev1.Pod{}, bySelector, of(selectorOf), &s.pods},
		{&v1.AzureAssignedIdentity{}, byPod, of(podOf), &s.assignments},
		{&v1.AzureAssignedIdentity{}, byNode, of(nodeOf), &s.assignments},
		{&v1.AzureIdentity{}, byResource, of(resourceOf), &s.identities},
		{&v1.AzureIdentityBinding{}, bySelector, of(Selectors), &s.bindings},
		{&v1.AzureIdentityBinding{}, byIdentity, of(identitiesOf), nil},
		{&v1.AzureIdentityAttachment{}, byRefused, of(Troubled), nil},
	}
}

// AddIndexes registers the indexes that a [Lookup] with such a Shared, or with none,
// asks the client for. It must be called once, before the cache starts.
func AddIndexes(ctx context.Context, indexer client.FieldIndexer, shared *Shared) error {
	for _, index := range indexes(&Shared{}) {
		if shared != nil && index.shared != nil {
			continue
		}
		if err := indexer.IndexField(ctx, index.object, index.name, index.keys); err != nil {
			return fmt.Errorf("indexing %T by %s: %w", index.object, index.name, err)
		}
	}
	return nil
}

func of[T client.Object](keys func(T) []string) client.IndexerFunc {
	return func(object client.Object) []string {
		typed, ok := object.(T)
		if !ok {
			return nil
		}
		return keys(typed)
	}
}

func selectorOf(p *corev1.Pod) []string { return some(p.Labels[v1.PodLabel]) }

func identitiesOf(b *v1.AzureIdentityBinding) []string {
	var out []string
	for _, key := range Names(b) {
		out = append(out, key.String())
	}
	return out
}

func podOf(a *v1.AzureAssignedIdentity) []string { return some(PodOf(a).String()) }

func nodeOf(a *v1.AzureAssignedIdentity) []string { return some(a.Spec.NodeName) }

func refOf(n *corev1.Node) []string {
	ref, err := compute.ParseProviderID(n.Spec.ProviderID)
	if err != nil {
		return nil
	}
	return some(ref.String())
}

func resourceOf(i *v1.AzureIdentity) []string {
	id, ok := ResourceOf(i)
	if !ok {
		return nil
	}
	return some(id.String())
}

func some(key string) []string {
	if key == "" {
		return nil
	}
	return []string{key}
}

// Selectors returns the label values that the binding selects, in either
// spelling: two where it contradicts itself.
func Selectors(b *v1.AzureIdentityBinding) []string {
	return both(b.Spec.Selector, b.Spec.LegacySelector)
}

// Names returns the identities that the binding names, in either spelling.
func Names(b *v1.AzureIdentityBinding) []identity.Key {
	var out []identity.Key
	for _, name := range both(b.Spec.AzureIdentity, b.Spec.LegacyAzureIdentity) {
		out = append(out, identity.Key{Namespace: b.Namespace, Name: name})
	}
	return out
}

func both(a, b string) []string {
	out := some(a)
	if b != a {
		out = append(out, some(b)...)
	}
	return out
}

// ResourceOf returns the managed identity that an AzureIdentity names, and false
// if it is of another kind or cannot be read.
func ResourceOf(i *v1.AzureIdentity) (armid.ID, bool) {
	principal, err := identity.FromObject(i)
	if err != nil || !principal.Attached() {
		return armid.ID{}, false
	}
	return principal.ResourceID, true
}

// Edition tells an AzureIdentity from another, and from itself with another
// spec.
func Edition(i *v1.AzureIdentity) string {
	return string(i.UID) + "@" + strconv.FormatInt(i.Generation, 10)
}

// Troubled returns the ARM IDs of the identities that a resource refuses or
// carries without use.
func Troubled(a *v1.AzureIdentityAttachment) []string {
	var out []string
	for _, r := range a.Status.Refused {
		out = append(out, r.ResourceID)
	}
	for _, e := range a.Status.Estranged {
		out = append(out, e.ResourceID)
	}
	return out
}

// PodOf returns the pod that an assignment is for.
func PodOf(a *v1.AzureAssignedIdentity) identity.Key {
	return identity.Key{Namespace: a.Spec.PodNamespace, Name: a.Spec.Pod}
}

// Lookup reads the cache. Objects are only read: they are shared.
type Lookup struct {
	Reader client.Reader
	// Shared, if set, is of the Reader's cache, and answers at less cost.
	Shared *Shared
}

// Bindings returns the bindings that may have the selector.
func (l Lookup) Bindings(ctx context.Context, selector string) ([]*v1.AzureIdentityBinding, error) {
	if l.Shared != nil {
		return find[*v1.AzureIdentityBinding](nil, l.Shared.bindings, bySelector, selector)
	}
	var list v1.AzureIdentityBindingList
	err := l.list(ctx, &list, client.MatchingFields{bySelector: selector})
	return pointers(list.Items), err
}

// BindingsOf returns the bindings that name an identity.
func (l Lookup) BindingsOf(ctx context.Context, key identity.Key) ([]*v1.AzureIdentityBinding, error) {
	var list v1.AzureIdentityBindingList
	err := l.list(ctx, &list, client.MatchingFields{byIdentity: key.String()})
	return pointers(list.Items), err
}

// Identity returns an AzureIdentity, or nil if there is none.
func (l Lookup) Identity(ctx context.Context, key identity.Key) (*v1.AzureIdentity, error) {
	if l.Shared != nil {
		return byKey[*v1.AzureIdentity](l.Shared.identities, key.String())
	}
	var out v1.AzureIdentity
	found, err := l.get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &out)
	if !found {
		return nil, err
	}
	return &out, nil
}

// Pod returns a pod with the label, or nil if there is none.
func (l Lookup) Pod(ctx context.Context, key identity.Key) (*corev1.Pod, error) {
	if l.Shared != nil {
		return byKey[*corev1.Pod](l.Shared.pods, key.String())
	}
	var out corev1.Pod
	found, err := l.get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &out)
	if !found {
		return nil, err
	}
	return &out, nil
}

// PodsWith returns the pods with a value of the label.
func (l Lookup) PodsWith(ctx context.Context, selector string) ([]*corev1.Pod, error) {
	if l.Shared != nil {
		return find[*corev1.Pod](nil, l.Shared.pods, bySelector, selector)
	}
	var list corev1.PodList
	err := l.list(ctx, &list, client.MatchingFields{bySelector: selector})
	return pointers(list.Items), err
}

// Assignment returns an assignment by its own name, or nil if there is none.
func (l Lookup) Assignment(ctx context.Context, namespace, name string) (*v1.AzureAssignedIdentity, error) {
	if l.Shared != nil {
		return byKey[*v1.AzureAssignedIdentity](l.Shared.assignments, namespace+"/"+name)
	}
	var out v1.AzureAssignedIdentity
	found, err := l.get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &out)
	if !found {
		return nil, err
	}
	return &out, nil
}

// Assignments returns all assignments. It is a walk over the cluster, for once.
func (l Lookup) Assignments(ctx context.Context) ([]*v1.AzureAssignedIdentity, error) {
	var list v1.AzureAssignedIdentityList
	err := l.list(ctx, &list)
	return pointers(list.Items), err
}

// AssignmentsOf returns a pod's assignments, in every namespace.
func (l Lookup) AssignmentsOf(ctx context.Context, pod identity.Key) ([]*v1.AzureAssignedIdentity, error) {
	if l.Shared != nil {
		return find[*v1.AzureAssignedIdentity](nil, l.Shared.assignments, byPod, pod.String())
	}
	var list v1.AzureAssignedIdentityList
	err := l.list(ctx, &list, client.MatchingFields{byPod: pod.String()})
	return pointers(list.Items), err
}

// AssignmentsOn returns the assignments of the pods of nodes.
func (l Lookup) AssignmentsOn(ctx context.Context, nodes ...string) (out []*v1.AzureAssignedIdentity, err error) {
	for _, node := range nodes {
		if l.Shared != nil {
			out, err = find(out, l.Shared.assignments, byNode, node)
		} else {
			var list v1.AzureAssignedIdentityList
			err = l.list(ctx, &list, client.MatchingFields{byNode: node})
			out = append(out, pointers(list.Items)...)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Node returns a node, or nil if there is none.
func (l Lookup) Node(ctx context.Context, name string) (*corev1.Node, error) {
	if l.Shared != nil {
		return byKey[*corev1.Node](l.Shared.nodes, name)
	}
	var out corev1.Node
	found, err := l.get(ctx, client.ObjectKey{Name: name}, &out)
	if !found {
		return nil, err
	}
	return &out, nil
}

// NodesOf returns the nodes of a virtual machine or scale set.
func (l Lookup) NodesOf(ctx context.Context, ref compute.Ref) ([]*corev1.Node, error) {
	if l.Shared != nil {
		return find[*corev1.Node](nil, l.Shared.nodes, byRef, ref.String())
	}
	var list corev1.NodeList
	err := l.list(ctx, &list, client.MatchingFields{byRef: ref.String()})
	return pointers(list.Items), err
}

// Attachments returns every AzureIdentityAttachment of the controller's.
func (l Lookup) Attachments(ctx context.Context) ([]*v1.AzureIdentityAttachment, error) {
	var list v1.AzureIdentityAttachmentList
	err := l.list(ctx, &list)
	return pointers(list.Items), err
}

// Attachment returns an AzureIdentityAttachment, or nil if there is none.
func (l Lookup) Attachment(ctx context.Context, key client.ObjectKey) (*v1.AzureIdentityAttachment, error) {
	var out v1.AzureIdentityAttachment
	found, err := l.get(ctx, key, &out)
	if !found {
		return nil, err
	}
	return &out, nil
}

// Naming returns the AzureIdentities that name a managed identity.
func (l Lookup) Naming(ctx context.Context, id armid.ID) ([]*v1.AzureIdentity, error) {
	if l.Shared != nil {
		return find[*v1.AzureIdentity](nil, l.Shared.identities, byResource, id.String())
	}
	var list v1.AzureIdentityList
	err := l.list(ctx, &list, client.MatchingFields{byResource: id.String()})
	return pointers(list.Items), err
}

// Troubling returns the AzureIdentityAttachments of the resources that refuse a
// managed identity, or carry it without use.
func (l Lookup) Troubling(ctx context.Context, id armid.ID) ([]*v1.AzureIdentityAttachment, error) {
	var list v1.AzureIdentityAttachmentList
	err := l.list(ctx, &list, client.MatchingFields{byRefused: id.String()})
	return pointers(list.Items), err
}

func (l Lookup) list(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	if err := l.Reader.List(ctx, list, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		return fmt.Errorf("listing %T: %w", list, err)
	}
	return nil
}

func (l Lookup) get(ctx context.Context, key client.ObjectKey, object client.Object) (found bool, err error) {
	err = l.Reader.Get(ctx, key, object)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading %T %s: %w", object, key, err)
	}
	return true, nil
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}
