package kube

import (
	"context"
	"fmt"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Shared finds the cache's own objects, by their keys and by the indexes that every
// pass over a scale set asks, once for each of its nodes and identities, and every
// look at a pod. The client copies each object, or what it lists them in, and costs
// more than all that is done with them.
type Shared struct {
	nodes, pods, assignments, identities, bindings toolscache.Indexer
}

// NewShared adds its indexes to the cache. It must be called once, before the
// cache starts.
func NewShared(ctx context.Context, informers cache.Informers) (*Shared, error) {
	out := &Shared{}
	for _, index := range indexes(out) {
		if index.shared == nil {
			continue
		}
		indexer, err := share(ctx, informers, index.object, toolscache.Indexers{index.name: func(object any) ([]string, error) {
			typed, ok := object.(client.Object)
			if !ok {
				return nil, nil
			}
			return index.keys(typed), nil
		}})
		if err != nil {
			return nil, fmt.Errorf("indexing %T by %s: %w", index.object, index.name, err)
		}
		*index.shared = indexer
	}
	return out, nil
}

func share(ctx context.Context, informers cache.Informers, object client.Object, indexers toolscache.Indexers) (toolscache.Indexer, error) {
	informer, err := informers.GetInformer(ctx, object, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, err
	}
	shared, ok := informer.(toolscache.SharedIndexInformer)
	if !ok {
		return nil, fmt.Errorf("its informer is a %T, which has no index of its own: keep the kind of the whole cluster", informer)
	}
	return shared.GetIndexer(), shared.AddIndexers(indexers)
}

// find adds the objects under a key to those that were found before.
func find[T client.Object](found []T, indexer toolscache.Indexer, index, key string) ([]T, error) {
	objects, err := indexer.ByIndex(index, key)
	if err != nil {
		return found, fmt.Errorf("looking up %s: %w", index, err)
	}
	for _, object := range objects {
		if typed, ok := object.(T); ok {
			found = append(found, typed)
		}
	}
	return found, nil
}

// byKey returns the object of a key, which is namespace/name, or the name alone;
// nil if there is none.
func byKey[T client.Object](indexer toolscache.Indexer, key string) (out T, err error) {
	object, found, err := indexer.GetByKey(key)
	if err != nil {
		return out, fmt.Errorf("looking up %s: %w", key, err)
	}
	if found {
		out, _ = object.(T)
	}
	return out, nil
}
