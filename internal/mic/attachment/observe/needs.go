package observe

import (
	"context"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// Need is an assignment that needs a managed identity on a resource. The object
// is the cache's and only read.
type Need struct {
	ID         armid.ID
	Assignment *v1.AzureAssignedIdentity
	// Behind says that the cache does not show yet what the controller has written
	// to the assignment: one more write would be refused.
	Behind bool
}

// Needs returns the assignments that need a managed identity on the resource.
func (o *Observer) Needs(ctx context.Context, ref compute.Ref) ([]Need, error) {
	nodes, err := o.Lookup.NodesOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(nodes))
	for _, node := range nodes {
		names = append(names, node.Name)
	}
	assignments, err := o.Lookup.AssignmentsOn(ctx, names...)
	if err != nil {
		return nil, err
	}
	return o.memory.read(ref, assignments), nil
}

// Wrote notes that an assignment was changed since the cache showed it.
func (o *Observer) Wrote(ref compute.Ref, shown *v1.AzureAssignedIdentity) {
	o.memory.wrote(ref, shown)
}

// Wanted returns the distinct identities that are needed.
func Wanted(needs []Need) []armid.ID {
	distinct := make(map[armid.ID]struct{})
	var out []armid.ID
	for _, need := range needs {
		if _, known := distinct[need.ID]; !known {
			distinct[need.ID] = struct{}{}
			out = append(out, need.ID)
		}
	}
	slices.SortFunc(out, armid.ID.Compare)
	return out
}

// memory spares reading again what has not changed: a scale set has thousands of
// assignments, and a pod that comes changes one. It is safe for concurrent use.
type memory struct {
	mu sync.Mutex
	of map[compute.Ref]map[types.UID]reading // protected by mu
}

// reading is what one version of an assignment says.
type reading struct {
	version string
	id      armid.ID
	needed  bool
	behind  bool
}

func (m *memory) read(ref compute.Ref, assignments []*v1.AzureAssignedIdentity) []Need {
	m.mu.Lock()
	defer m.mu.Unlock()
	readings := m.readings(ref)
	out := make([]Need, 0, len(assignments))
	for _, a := range assignments {
		said, known := readings[a.UID]
		if !known || said.version != a.ResourceVersion {
			said = reading{version: a.ResourceVersion}
			said.id, said.needed = kube.ManagedIdentity(a)
			readings[a.UID] = said
		}
		if said.needed {
			out = append(out, Need{ID: said.id, Assignment: a, Behind: said.behind})
		}
	}
	if len(readings) > len(assignments) || len(assignments) == 0 {
		m.forget(ref, assignments)
	}
	return out
}

// readings returns what is known of a resource. The caller holds mu.
func (m *memory) readings(ref compute.Ref) map[types.UID]reading {
	if m.of == nil {
		m.of = map[compute.Ref]map[types.UID]reading{}
	}
	if m.of[ref] == nil {
		m.of[ref] = map[types.UID]reading{}
	}
	return m.of[ref]
}

// forget drops what is known of others than these. The caller holds mu.
func (m *memory) forget(ref compute.Ref, but []*v1.AzureAssignedIdentity) {
	if len(but) == 0 {
		delete(m.of, ref)
		return
	}
	kept := make(map[types.UID]reading, len(but))
	for _, a := range but {
		kept[a.UID] = m.of[ref][a.UID]
	}
	m.of[ref] = kept
}

func (m *memory) wrote(ref compute.Ref, shown *v1.AzureAssignedIdentity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if said, known := m.of[ref][shown.UID]; known && said.version == shown.ResourceVersion {
		said.behind = true
		m.of[ref][shown.UID] = said
	}
}
