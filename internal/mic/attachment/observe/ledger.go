package observe

import (
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// memory spares reading again what has not changed: a scale set has thousands of
// assignments, and a pod that comes changes one. It is safe for concurrent use.
type memory struct {
	mu sync.Mutex
	of map[compute.Ref]*ledger // protected by mu, as is all that it holds
}

// ledger is what the assignments of one resource say.
type ledger struct {
	readings []reading                 // in no order
	at       map[client.ObjectKey]int  // where in readings an assignment is
	users    map[armid.ID]int          // how many assignments need an identity
	noted    map[client.ObjectKey]bool // those that have changed since
	// whole says that there are no other assignments than these, but for the noted
	// ones. It ends when the epoch does.
	whole bool
	epoch int
}

// reading is what one version of an assignment says.
type reading struct {
	assignment *v1.AzureAssignedIdentity
	id         armid.ID
	needed     bool
	behind     bool
}

func read(a *v1.AzureAssignedIdentity) reading {
	out := reading{assignment: a}
	out.id, out.needed = kube.ManagedIdentity(a)
	return out
}

// isOf reports whether it is this version that was read.
func (r reading) isOf(a *v1.AzureAssignedIdentity) bool {
	return r.assignment.UID == a.UID && r.assignment.ResourceVersion == a.ResourceVersion
}

// take returns the assignments that were noted, which are then as good as read,
// and whether all others are known. Where they are not, the epoch is what
// [memory.replace] is to be told.
func (m *memory) take(ref compute.Ref) (noted []client.ObjectKey, whole bool, epoch int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of == nil {
		m.of = map[compute.Ref]*ledger{}
	}
	l := m.of[ref]
	if l == nil {
		l = &ledger{}
		m.of[ref] = l
	}
	for key := range l.noted {
		noted = append(noted, key)
	}
	l.noted = nil
	return noted, l.whole, l.epoch
}

// knows reports whether all assignments of a resource are known, but for the noted
// ones.
func (m *memory) knows(ref compute.Ref) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.of[ref]
	return l != nil && l.whole
}

// note says that an assignment has changed.
func (m *memory) note(ref compute.Ref, key client.ObjectKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.of[ref]
	if l == nil {
		return // all will be read
	}
	if l.noted == nil {
		l.noted = map[client.ObjectKey]bool{}
	}
	l.noted[key] = true
}

// doubt says that there may be other assignments than those that are known. What
// each of them says stays read.
func (m *memory) doubt(ref compute.Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.of[ref]; l != nil {
		l.whole = false
		l.epoch++
	}
}

// replace takes in all assignments of a resource, as they were after the epoch was
// taken, and returns what they need.
func (m *memory) replace(ref compute.Ref, epoch int, all []*v1.AzureAssignedIdentity) []Need {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(all) == 0 {
		delete(m.of, ref)
		return nil
	}
	before := m.of[ref]
	l := &ledger{
		readings: make([]reading, 0, len(all)), at: make(map[client.ObjectKey]int, len(all)), users: map[armid.ID]int{},
		noted: before.noted, whole: before.epoch == epoch, epoch: before.epoch,
	}
	for _, a := range all {
		key := client.ObjectKeyFromObject(a)
		l.at[key] = len(l.readings)
		l.readings = append(l.readings, before.read(key, a))
		l.count(l.readings[len(l.readings)-1], 1)
	}
	m.of[ref] = l
	return l.needs()
}

// read reads what an assignment says, unless it was read.
func (l *ledger) read(key client.ObjectKey, a *v1.AzureAssignedIdentity) reading {
	if at, known := l.at[key]; known && l.readings[at].isOf(a) {
		return l.readings[at]
	}
	return read(a)
}

func (l *ledger) count(r reading, by int) {
	if r.needed {
		l.users[r.id] += by
	}
	if l.users[r.id] == 0 {
		delete(l.users, r.id)
	}
}

// update takes in assignments as they are now; nil for one that is gone from the
// resource.
func (m *memory) update(ref compute.Ref, changed map[client.ObjectKey]*v1.AzureAssignedIdentity) Changes {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.of[ref]
	var out Changes
	var left []armid.ID
	for key, a := range changed {
		was := l.drop(key)
		if was.needed {
			left = append(left, was.id)
		}
		if a == nil {
			continue
		}
		is := was
		if was.assignment == nil || !was.isOf(a) {
			is = read(a)
		}
		l.at[key] = len(l.readings)
		l.readings = append(l.readings, is)
		l.count(is, 1)
		if is.needed {
			out.Needs = append(out.Needs, is.need())
		}
	}
	for _, id := range left {
		if l.users[id] == 0 {
			out.Unneeded = append(out.Unneeded, id)
		}
	}
	if len(l.readings) == 0 {
		delete(m.of, ref)
	}
	return out
}

// drop forgets an assignment and returns what it said. The last one takes its
// place.
func (l *ledger) drop(key client.ObjectKey) reading {
	at, known := l.at[key]
	if !known {
		return reading{}
	}
	was, last := l.readings[at], len(l.readings)-1
	l.readings[at] = l.readings[last]
	l.at[client.ObjectKeyFromObject(l.readings[at].assignment)] = at
	l.readings[last] = reading{}
	l.readings = l.readings[:last]
	delete(l.at, key)
	l.count(was, -1)
	return was
}

// needs returns what is needed as far as it was read.
func (m *memory) needs(ref compute.Ref) []Need {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of[ref] == nil {
		return nil
	}
	return m.of[ref].needs()
}

func (l *ledger) needs() []Need {
	out := make([]Need, 0, len(l.readings))
	for _, r := range l.readings {
		if r.needed {
			out = append(out, r.need())
		}
	}
	return out
}

func (r reading) need() Need { return Need{ID: r.id, Assignment: r.assignment, Behind: r.behind} }

// wrote notes that the controller has changed an assignment since it was read.
func (m *memory) wrote(ref compute.Ref, shown *v1.AzureAssignedIdentity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.of[ref]
	if l == nil {
		return
	}
	if at, known := l.at[client.ObjectKeyFromObject(shown)]; known && l.readings[at].isOf(shown) {
		l.readings[at].behind = true
	}
}
