package observe

import (
	"context"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
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

// Changes are what became of the needs of a resource since they were last read.
type Changes struct {
	// Needs are those of the assignments that have changed, or are new.
	Needs []Need
	// Unneeded are the identities whose last assignment is gone.
	Unneeded []armid.ID
}

// Needs returns the assignments that need a managed identity on the resource. All
// of them are looked up once; after that those only that [Observer.Changed] named,
// until [Observer.Doubt]. One resource's needs are read by one at a time.
func (o *Observer) Needs(ctx context.Context, ref compute.Ref) ([]Need, error) {
	noted, whole, epoch := o.memory.take(ref)
	if whole {
		if _, err := o.update(ctx, ref, noted); err != nil {
			return nil, err
		}
		return o.memory.needs(ref), nil
	}
	assignments, err := o.all(ctx, ref)
	if err != nil {
		return nil, err
	}
	return o.memory.replace(ref, epoch, assignments), nil
}

// Changes returns what has changed since the needs were last read, by this or by
// [Observer.Needs]; false if that is not known.
func (o *Observer) Changes(ctx context.Context, ref compute.Ref) (changes Changes, known bool, err error) {
	if !o.memory.knows(ref) {
		return Changes{}, false, nil
	}
	noted, whole, _ := o.memory.take(ref)
	if !whole {
		return Changes{}, false, nil
	}
	changes, err = o.update(ctx, ref, noted)
	return changes, err == nil, err
}

// Changed says that an assignment of the resource was made, changed or deleted,
// after the cache has shown it.
func (o *Observer) Changed(ref compute.Ref, key client.ObjectKey) { o.memory.note(ref, key) }

// Doubt says that the nodes of the resource may be others now.
func (o *Observer) Doubt(ref compute.Ref) { o.memory.doubt(ref) }

// Wrote notes that an assignment was changed since the cache showed it.
func (o *Observer) Wrote(ref compute.Ref, shown *v1.AzureAssignedIdentity) {
	o.memory.wrote(ref, shown)
}

// all looks up the assignments of the resource's nodes.
func (o *Observer) all(ctx context.Context, ref compute.Ref) ([]*v1.AzureAssignedIdentity, error) {
	nodes, err := o.Lookup.NodesOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(nodes))
	for _, node := range nodes {
		names = append(names, node.Name)
	}
	return o.Lookup.AssignmentsOn(ctx, names...)
}

// update reads the assignments again that were noted.
func (o *Observer) update(ctx context.Context, ref compute.Ref, noted []client.ObjectKey) (Changes, error) {
	if len(noted) == 0 {
		return Changes{}, nil
	}
	changed := make(map[client.ObjectKey]*v1.AzureAssignedIdentity, len(noted))
	for _, key := range noted {
		assignment, err := o.one(ctx, ref, key)
		if err != nil {
			o.Doubt(ref) // they are not noted any more
			return Changes{}, err
		}
		changed[key] = assignment
	}
	return o.memory.update(ref, changed), nil
}

// one looks up an assignment; nil if there is none on the resource's nodes.
func (o *Observer) one(ctx context.Context, ref compute.Ref, key client.ObjectKey) (*v1.AzureAssignedIdentity, error) {
	assignment, err := o.Lookup.Assignment(ctx, key.Namespace, key.Name)
	if assignment == nil {
		return nil, err
	}
	node, err := o.Lookup.Node(ctx, assignment.Spec.NodeName)
	if node == nil {
		return nil, err
	}
	if on, err := compute.ParseProviderID(node.Spec.ProviderID); err != nil || on != ref {
		return nil, nil //nolint:nilerr,nilnil // of another resource, or of none
	}
	return assignment, nil
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
