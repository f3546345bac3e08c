package attachment

import (
	"context"

	"k8s.io/utils/lru"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

// places remembers of which resource a node was, also when the node is gone: its
// pods' assignments may go after it. It is safe for concurrent use.
type places struct {
	known *lru.Cache
}

// remembered is how many nodes are kept.
const remembered = 16384

func newPlaces() *places { return &places{known: lru.New(remembered)} }

// note keeps the resource of a node.
func (p *places) note(node string, ref compute.Ref) { p.known.Add(node, ref) }

// of returns the resource that a node is or was of; false if it never was seen
// or has none.
func (r *Reconciler) placeOf(ctx context.Context, name string) (compute.Ref, bool) {
	node, err := r.lookup.Node(ctx, name)
	if err == nil && node != nil {
		ref, err := compute.ParseProviderID(node.Spec.ProviderID)
		return ref, err == nil
	}
	ref, ok := r.places.known.Get(name)
	if !ok {
		return compute.Ref{}, false
	}
	out, ok := ref.(compute.Ref)
	return out, ok
}
