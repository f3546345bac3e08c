package caller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Index knows this node's pods by address. It is safe for concurrent use; a
// Lookup takes no longer for many pods than for one. Use [NewIndex].
type Index struct {
	node string
	wait time.Duration

	mu        sync.RWMutex // protects all following fields
	pods      map[identity.Key]entry
	byAddress map[netip.Addr][]identity.Key
	// changed is closed, and replaced, whenever a pod came, went or changed.
	changed chan struct{}
}

type entry struct {
	pod       Pod
	addresses []netip.Addr
}

// NewIndex returns an empty index for the pods of one node. An address that no
// pod has yet is waited for up to wait: a pod can call before its address has
// reached the watch.
func NewIndex(node string, wait time.Duration) *Index {
	return &Index{
		node: node, wait: wait,
		pods: map[identity.Key]entry{}, byAddress: map[netip.Addr][]identity.Key{}, changed: make(chan struct{}),
	}
}

// Set adds a pod or replaces what is known of it. A pod of another node, or one
// that has ended, is removed. A pod whose addresses cannot be read is kept out,
// with an error.
func (x *Index) Set(object *corev1.Pod) error {
	found, err := addresses(object)
	pod := podOf(object)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(pod.Key)
	if err == nil && lives(object) && object.Spec.NodeName == x.node {
		x.pods[pod.Key] = entry{pod: pod, addresses: found}
		for _, address := range found {
			if keys := x.byAddress[address]; !slices.Contains(keys, pod.Key) {
				x.byAddress[address] = append(keys, pod.Key)
			}
		}
	}
	x.announce()
	return err
}

// Delete forgets a pod; one that is not known is no error.
func (x *Index) Delete(key identity.Key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(key)
	x.announce()
}

func (x *Index) remove(key identity.Key) {
	for _, address := range x.pods[key].addresses {
		left := slices.DeleteFunc(x.byAddress[address], func(k identity.Key) bool { return k == key })
		if len(left) == 0 {
			delete(x.byAddress, address)
			continue
		}
		x.byAddress[address] = left
	}
	delete(x.pods, key)
}

func (x *Index) announce() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// Lookup returns the pod that has the address. If none has, or several have, as
// they may for a moment when an address is given out again, it waits for the
// watch to tell, then refuses with CallerUnknown or CallerAmbiguous. It never
// guesses. It ends early with ctx.
func (x *Index) Lookup(ctx context.Context, remote netip.Addr) (Pod, error) {
	remote = remote.Unmap().WithZone("")
	return x.await(ctx, func() (Pod, <-chan struct{}, error) { return x.find(remote) })
}

// LookupNamed returns the pod of that name, also one that has no address (yet) or
// its node's: whoever asks for it is a program of the node. It waits as Lookup
// does.
func (x *Index) LookupNamed(ctx context.Context, key identity.Key) (Pod, error) {
	return x.await(ctx, func() (Pod, <-chan struct{}, error) { return x.findNamed(key) })
}

// FindNamed is [Index.LookupNamed] without waiting.
func (x *Index) FindNamed(key identity.Key) (Pod, error) {
	pod, _, err := x.findNamed(key)
	return pod, err
}

func (x *Index) findNamed(key identity.Key) (Pod, <-chan struct{}, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if known, ok := x.pods[key]; ok {
		return known.pod, x.changed, nil
	}
	return Pod{}, x.changed, refusal.New(v1.ReasonCallerUnknown, "node %s runs no pod %s: ask on the pod's own node", x.node, key)
}

func (x *Index) await(ctx context.Context, find func() (Pod, <-chan struct{}, error)) (Pod, error) {
	pod, changed, err := find()
	if err == nil {
		return pod, nil
	}
	timer := time.NewTimer(x.wait)
	defer timer.Stop()
	for {
		select {
		case <-changed:
		case <-timer.C:
			return Pod{}, err
		case <-ctx.Done():
			return Pod{}, err
		}
		if pod, changed, err = find(); err == nil {
			return pod, nil
		}
	}
}

// Find is [Index.Lookup] without waiting.
func (x *Index) Find(remote netip.Addr) (Pod, error) {
	pod, _, err := x.find(remote.Unmap().WithZone(""))
	return pod, err
}

func (x *Index) find(remote netip.Addr) (Pod, <-chan struct{}, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch keys := x.byAddress[remote]; len(keys) {
	case 1:
		return x.pods[keys[0]].pod, x.changed, nil
	case 0:
		return Pod{}, x.changed, refusal.New(v1.ReasonCallerUnknown,
			"no pod of node %s has the address %s (yet): pods of the host's network are not served, and a new pod's address can take a moment to be known", x.node, remote)
	default:
		refused := refusal.New(v1.ReasonCallerAmbiguous,
			"%d pods of node %s claim the address %s: try again when those that ended are gone", len(keys), x.node, remote)
		// Which ones is for the log: the caller may be none of them.
		refused.Err = fmt.Errorf("address %s is claimed by %s", remote, join(keys))
		return Pod{}, x.changed, refused
	}
}

func join(keys []identity.Key) string {
	texts := make([]string, len(keys))
	for i, key := range keys {
		texts[i] = key.String()
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}
