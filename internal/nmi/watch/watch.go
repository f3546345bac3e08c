// Package watch keeps, from watches of the API server, what the agent decides
// from: this node's pods and the objects of pod identity.
//
// It starts and goes on without an API server: what it has is served, and what
// it has not yet is known to be missing. It only holds objects; it must not decide
// who may use what.
package watch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// maxLabel is the longest value of a label. The controller leaves the label
// nodename out for nodes of longer names.
const maxLabel = 63

// Options configure a [Store].
type Options struct {
	// Node is this node's name.
	Node string
	// Assigned keeps AzureAssignedIdentities, too.
	Assigned bool
	// AllNodes keeps the assignments of all nodes, because some lack the label
	// nodename.
	AllNodes bool
	// Pods is told of this node's pods, trimmed by PodTransform.
	Pods         Pods
	PodTransform cache.TransformFunc
	// MaxStaleness is how long the API server may say nothing of a kind before
	// [Store.Stale] names it; 0 is for ever.
	MaxStaleness time.Duration
	// Now is the clock; nil is the real one.
	Now func() time.Time
	// Log gets what goes wrong with the watches.
	Log *slog.Logger
}

// Store is what the API server said. Objects that it returns are shared and only
// read. Use [New], then [Store.Run].
type Store struct {
	bindings, identities, exceptions, assigned, pods cache.SharedIndexInformer

	changed *signal
	// synced holds, by the plural name of the kind, whether all that was there
	// at the start has been seen.
	synced map[string]cache.InformerSynced
	// contacts are by the plural name, too.
	contacts     map[string]*contact
	maxStaleness time.Duration
	now          func() time.Time
	log          *slog.Logger
}

// New returns an empty store. It does not connect.
func New(config *rest.Config, options Options) (*Store, error) {
	ours, err := clientFor(config, v1.GroupVersion, "/apis", v1.AddToScheme)
	if err != nil {
		return nil, err
	}
	core, err := clientFor(config, corev1.SchemeGroupVersion, "/api", corev1.AddToScheme)
	if err != nil {
		return nil, err
	}
	s := &Store{
		changed: newSignal(), synced: map[string]cache.InformerSynced{}, contacts: map[string]*contact{},
		maxStaleness: options.MaxStaleness, now: options.Now, log: options.Log,
	}
	if s.now == nil {
		s.now = time.Now
	}
	kinds := []kind{
		{&s.identities, ours, "azureidentities", &v1.AzureIdentity{}, everything, trim, cache.Indexers{byClientID: clientIDs, byResourceID: resourceIDs}},
		{&s.bindings, ours, "azureidentitybindings", &v1.AzureIdentityBinding{}, everything, trim, cache.Indexers{bySelector: selectors}},
		{&s.exceptions, ours, "azurepodidentityexceptions", &v1.AzurePodIdentityException{}, everything, trim, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}},
		{&s.pods, core, "pods", &corev1.Pod{}, ofNode(options.Node), options.PodTransform, nil},
	}
	if options.Assigned {
		kinds = append(kinds, kind{&s.assigned, ours, "azureassignedidentities", &v1.AzureAssignedIdentity{}, options.assignedOnly(), trim, cache.Indexers{byPod: podOf}})
	}
	for _, k := range kinds {
		if err := s.add(k); err != nil {
			return nil, fmt.Errorf("preparing the watch of %s: %w", k.plural, err)
		}
	}
	return s, s.tell(options.Pods)
}

// kind is one watch to set up.
type kind struct {
	into      *cache.SharedIndexInformer
	client    rest.Interface
	plural    string
	object    runtime.Object
	narrow    func(*metav1.ListOptions)
	transform cache.TransformFunc
	indexers  cache.Indexers
}

func everything(*metav1.ListOptions) {}

func ofNode(node string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) { o.FieldSelector = "spec.nodeName=" + node }
}

func (o Options) assignedOnly() func(*metav1.ListOptions) {
	if o.AllNodes || len(o.Node) > maxLabel {
		return everything
	}
	return func(l *metav1.ListOptions) { l.LabelSelector = v1.NodeNameLabel + "=" + o.Node }
}

func (s *Store) add(k kind) error {
	contact := &contact{now: s.now}
	lister := contact.listen(cache.NewFilteredListWatchFromClient(k.client, k.plural, metav1.NamespaceAll, k.narrow))
	informer := cache.NewSharedIndexInformer(lister, k.object, 0, k.indexers)
	if err := informer.SetTransform(k.transform); err != nil {
		return err
	}
	if err := informer.SetWatchErrorHandlerWithContext(s.failed(k.plural)); err != nil {
		return err
	}
	// Whoever waits is woken after the index has the object.
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.changed.raise() },
		UpdateFunc: func(any, any) { s.changed.raise() },
		DeleteFunc: func(any) { s.changed.raise() },
	})
	if err != nil {
		return err
	}
	*k.into, s.synced[k.plural], s.contacts[k.plural] = informer, registration.HasSynced, contact
	return nil
}

// failed logs a watch that broke; the informer tries again by itself.
func (s *Store) failed(plural string) cache.WatchErrorHandlerWithContext {
	return func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil {
			s.log.WarnContext(ctx, "watch failed, going on from the cache", "resource", plural, "error", err)
		}
	}
}

// tell hands the node's pods on.
func (s *Store) tell(pods Pods) error {
	set := func(object any) {
		pod, ok := object.(*corev1.Pod)
		if !ok {
			return
		}
		if err := pods.Set(pod); err != nil {
			s.log.Error("pod is not served", "error", err)
		}
		s.changed.raise()
	}
	registration, err := s.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, object any) { set(object) },
		DeleteFunc: func(object any) {
			if key, err := cache.DeletionHandlingObjectToName(object); err == nil {
				pods.Delete(identity.Key{Namespace: key.Namespace, Name: key.Name})
				s.changed.raise()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("preparing the watch of pods: %w", err)
	}
	s.synced["pods"] = registration.HasSynced
	return nil
}

// Run watches until ctx ends.
func (s *Store) Run(ctx context.Context) {
	var group sync.WaitGroup
	for _, informer := range []cache.SharedIndexInformer{s.pods, s.exceptions, s.identities, s.bindings, s.assigned} {
		if informer != nil {
			group.Go(func() { informer.RunWithContext(ctx) })
		}
	}
	group.Wait()
}

// WaitSynced returns true once everything has been seen that was there at the
// start, and false if ctx ended first.
func (s *Store) WaitSynced(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), slices.Collect(maps.Values(s.synced))...)
}

// Unsynced returns the kinds of which not everything has been seen yet, by their
// plural names, in no order. It is empty for good once it has been.
func (s *Store) Unsynced() []string {
	var out []string
	for plural, synced := range s.synced {
		if !synced() {
			out = append(out, plural)
		}
	}
	return out
}

// Changed returns a channel that is closed at the next change of any object. To
// miss none, take it before looking at objects.
func (s *Store) Changed() <-chan struct{} { return s.changed.wait() }

func clientFor(config *rest.Config, version schema.GroupVersion, path string, add func(*runtime.Scheme) error) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, fmt.Errorf("registering %s: %w", version, err)
	}
	own := rest.CopyConfig(config)
	own.GroupVersion, own.APIPath = &version, path
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", version, err)
	}
	return client, nil
}
