package assignment

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// patience is how long the cache may take to show a write. After that the write
// counts as shown. It is the last resort: a cache that is this late is cut off
// from the API server, and what is written meanwhile fails or is written twice.
const patience = time.Minute

// pending are the writes that the cache has not shown yet, by pod. Who decided
// by such a cache would write the same again. It is kept for each pod, so that
// one pod's write makes no other pod wait. The zero pending is empty; it is safe
// for concurrent use.
type pending struct {
	mu     sync.Mutex
	writes map[identity.Key]map[identity.Key]write // by pod, then assignment; protected by mu
}

// write is an assignment as the API server has it.
type write struct {
	uid     types.UID
	version string // empty: it was deleted
	until   time.Time
}

// wrote notes that the API server has the object.
func (p *pending) wrote(pod identity.Key, object *v1.AzureAssignedIdentity, now time.Time) {
	p.note(pod, objectKey(object), write{uid: object.UID, version: object.ResourceVersion, until: now.Add(patience)})
}

// deleted notes that the API server does not have the object any more.
func (p *pending) deleted(pod identity.Key, object *v1.AzureAssignedIdentity, now time.Time) {
	p.note(pod, objectKey(object), write{uid: object.UID, until: now.Add(patience)})
}

func (p *pending) note(pod, object identity.Key, w write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writes == nil {
		p.writes = map[identity.Key]map[identity.Key]write{}
	}
	if p.writes[pod] == nil {
		p.writes[pod] = map[identity.Key]write{}
	}
	p.writes[pod][object] = w
}

// shown takes in that an event shows the object, at its end or before: also one
// that somebody else took away before anybody looked for it in the cache.
func (p *pending) shown(pod identity.Key, object *v1.AzureAssignedIdentity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	writes, key := p.writes[pod], objectKey(object)
	if w, ok := writes[key]; ok && w.version != "" && w.seen(object) {
		p.drop(pod, key)
	}
}

func (p *pending) drop(pod, object identity.Key) {
	delete(p.writes[pod], object)
	if len(p.writes[pod]) == 0 {
		delete(p.writes, pod)
	}
}

// wait returns how long at most to wait until the cache, which holds these
// assignments of the pod, has shown every write to them; zero is now. The event
// that shows the last one comes sooner.
func (p *pending) wait(pod identity.Key, cached []*v1.AzureAssignedIdentity, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	writes := p.writes[pod]
	if len(writes) == 0 {
		return 0
	}
	there := map[identity.Key]*v1.AzureAssignedIdentity{}
	for _, object := range cached {
		there[objectKey(object)] = object
	}
	var left time.Duration
	for key, w := range writes {
		if w.seen(there[key]) || !now.Before(w.until) {
			p.drop(pod, key)
			continue
		}
		left = max(left, w.until.Sub(now))
	}
	return left
}

// seen reports whether the cache, which holds this object, is as new as the
// write.
func (w write) seen(cached *v1.AzureAssignedIdentity) bool {
	if w.version == "" {
		return cached == nil || cached.UID != w.uid || cached.DeletionTimestamp != nil
	}
	if cached == nil {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(cached.ResourceVersion, w.version)
	return err == nil && order >= 0
}
