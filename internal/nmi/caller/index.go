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
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Index knows this node's pods by address. It is safe for concurrent use; a
// Lookup takes no longer for many pods than for one. Use [NewIndex].
type Index struct {
	node   string
	wait   time.Duration
	proofs Proofs

	mu        sync.RWMutex // protects all following fields, and those of claims
	pods      map[identity.Key]*entry
	byAddress map[netip.Addr][]*claim
	owners    map[int]types.UID // of links, the pod that each is tied to
	// changed is closed, and replaced, whenever a pod or a link came, went or
	// changed.
	changed chan struct{}
}

type entry struct {
	pod    Pod
	claims []*claim
}

// NewIndex returns an empty index for the pods of one node. An address that no
// pod has yet is waited for up to wait: a pod can call before its address has
// reached the watch. Callers are known by their address alone, unless
// [Index.Prove] says otherwise.
func NewIndex(node string, wait time.Duration) *Index {
	x := &Index{
		node: node, wait: wait,
		pods: map[identity.Key]*entry{}, byAddress: map[netip.Addr][]*claim{}, changed: make(chan struct{}),
		owners: map[int]types.UID{},
	}
	x.Prove(Proofs{})
	return x
}

// Set adds a pod or replaces what is known of it. A pod of another node, or one
// that has ended, is removed. A pod whose addresses cannot be read is kept out,
// with an error.
func (x *Index) Set(object *corev1.Pod) error {
	found, err := addresses(object)
	pod := podOf(object)
	x.catchUp(found)
	x.mu.Lock()
	before := x.pods[pod.Key]
	if err == nil && lives(object) && object.Spec.NodeName == x.node {
		x.put(pod, found, lifeOf(object))
	} else {
		x.remove(pod.Key)
	}
	changed := before == nil || x.pods[pod.Key] == nil || !sameClaims(before, x.pods[pod.Key])
	x.announce()
	x.mu.Unlock()
	if changed {
		x.resolve(found)
	}
	return err
}

func sameClaims(a, b *entry) bool { return slices.Equal(a.claims, b.claims) }

// put replaces a pod. Claims that it made before keep what they are tied to.
func (x *Index) put(pod Pod, found []netip.Addr, now life) {
	before := x.pods[pod.Key]
	after := &entry{pod: pod}
	for _, address := range found {
		if after.claim(address) != nil {
			continue // told twice
		}
		c := before.kept(pod.UID, address, now)
		if c == nil {
			c = &claim{address: address, learned: x.proofs.Now()}
			x.byAddress[address] = append(x.byAddress[address], c)
		}
		after.claims = append(after.claims, c)
	}
	x.drop(before, after.claims)
	for _, c := range after.claims {
		c.of, c.life.started = after, now.started
		if !now.ready.IsZero() {
			c.life.ready = now.ready
		}
	}
	x.pods[pod.Key] = after
}

// claim returns the claim of an address, or nil.
func (e *entry) claim(address netip.Addr) *claim {
	for _, c := range e.claims {
		if c.address == address {
			return c
		}
	}
	return nil
}

// kept returns a claim of the very pod that is the same as before, or nil.
func (e *entry) kept(uid types.UID, address netip.Addr, now life) *claim {
	if e == nil || e.pod.UID != uid {
		return nil
	}
	if c := e.claim(address); c != nil && !c.again(now) {
		return c
	}
	return nil
}

// Delete forgets a pod; one that is not known is no error.
func (x *Index) Delete(key identity.Key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(key)
	x.announce()
}

func (x *Index) remove(key identity.Key) {
	x.drop(x.pods[key], nil)
	delete(x.pods, key)
}

// drop forgets the claims of a pod, but for those to keep.
func (x *Index) drop(pod *entry, keep []*claim) {
	if pod == nil {
		return
	}
	for _, c := range pod.claims {
		if slices.Contains(keep, c) {
			continue
		}
		x.release(c)
		left := slices.DeleteFunc(x.byAddress[c.address], func(other *claim) bool { return other == c })
		if len(left) > 0 {
			x.byAddress[c.address] = left
			continue
		}
		delete(x.byAddress, c.address)
	}
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

// find judges every claim of the address by the link over which it is reached
// now.
func (x *Index) find(remote netip.Addr) (Pod, <-chan struct{}, error) {
	path, err := x.path(remote)
	x.mu.RLock()
	changed := x.changed
	if err != nil {
		x.mu.RUnlock()
		return Pod{}, changed, err
	}
	if best := x.choose(remote, path); best.accepted == 1 && best.verdict != provable {
		defer x.mu.RUnlock()
		return best.claim.of.pod, changed, nil
	}
	x.mu.RUnlock()
	return x.settle(remote, path)
}

// settle is what find does if something is to be written down: which link a
// claim is tied to, or that somebody else speaks from its address.
func (x *Index) settle(remote netip.Addr, path link.Path) (Pod, <-chan struct{}, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	best := x.choose(remote, path)
	switch {
	case best.accepted > 1:
		return Pod{}, x.changed, x.ambiguous(remote)
	case best.accepted == 1:
		if best.verdict == provable {
			x.tie(best.claim, path)
		}
		return best.claim.of.pod, x.changed, nil
	case best.claim == nil:
		return Pod{}, x.changed, refusal.New(v1.ReasonCallerUnknown,
			"no pod of node %s has the address %s (yet): pods of the host's network are not served, and a new pod's address can take a moment to be known", x.node, remote)
	case best.verdict == mismatched && path.Proof == link.PerPort:
		x.hold(best.claim)
	}
	return Pod{}, x.changed, x.refuse(best.verdict, remote, path)
}

// chosen is what becomes of the claims of an address.
type chosen struct {
	// verdict is that on claim: the accepted one, or the one that was refused for
	// the reason most worth telling.
	verdict  verdict
	claim    *claim
	accepted int
}

func (x *Index) choose(remote netip.Addr, path link.Path) chosen {
	var out chosen
	for _, c := range x.byAddress[remote] {
		v := x.judge(c, path)
		if v.accepts() {
			out.accepted++
		}
		if out.claim == nil || v.accepts() || out.accepted == 0 && v > out.verdict {
			out.verdict, out.claim = v, c
		}
	}
	return out
}

func (x *Index) ambiguous(remote netip.Addr) *refusal.Error {
	claims := x.byAddress[remote]
	refused := refusal.New(v1.ReasonCallerAmbiguous,
		"%d pods of node %s claim the address %s: try again when those that ended are gone", len(claims), x.node, remote)
	// Which ones is for the log: the caller may be none of them.
	texts := make([]string, len(claims))
	for i, c := range claims {
		texts[i] = c.of.pod.String()
	}
	slices.Sort(texts)
	refused.Err = fmt.Errorf("address %s is claimed by %s", remote, strings.Join(texts, ", "))
	return refused
}
