package attachment

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// adoption is what the leader does first: it records what the old controller has
// attached, as the old controller's assignments say. Nobody changes an assignment
// before that is done, since they are the only proof.
type adoption struct{ *Reconciler }

// Start records, as often as it takes.
func (a adoption) Start(ctx context.Context) error {
	if !a.options.Adopt {
		return nil
	}
	logger := log.FromContext(ctx).WithName("adoption")
	for wait := a.options.RetryMin; ; wait = min(2*wait, a.options.RetryMax) {
		err := a.adopt(log.IntoContext(ctx, logger))
		if err == nil {
			close(a.adopted)
			return nil
		}
		logger.Error(err, "taking over from the old controller", "retryAfter", wait.String())
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// WaitAdopted returns when what the old controller attached is recorded, or with
// the context's error.
func (r *Reconciler) WaitAdopted(ctx context.Context) error {
	select {
	case <-r.adopted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// adopt walks over the assignments once. The old controller's are few, or all of
// them once in a cluster's life.
func (a adoption) adopt(ctx context.Context) error {
	assignments, err := a.lookup.Assignments(ctx)
	if err != nil {
		return err
	}
	old := map[compute.Ref][]*v1.AzureAssignedIdentity{}
	for _, assignment := range assignments {
		if _, says := plan.Inherited(assignment, false); !says {
			continue
		}
		if ref, ok := a.placeOf(ctx, assignment.Spec.NodeName); ok {
			old[ref] = append(old[ref], assignment)
		}
	}
	for ref, assignments := range old {
		if err := a.inherit(ctx, ref, assignments); err != nil {
			return fmt.Errorf("taking over %s: %w", ref, err)
		}
	}
	return nil
}

func (a adoption) inherit(ctx context.Context, ref compute.Ref, assignments []*v1.AzureAssignedIdentity) error {
	record, err := a.observe.Record(ctx, ref)
	if err != nil {
		return err
	}
	var inherited []armid.ID
	for _, assignment := range assignments {
		if id, says := plan.Inherited(assignment, record.UID != ""); says {
			inherited = append(inherited, id)
		}
	}
	records := plan.Inherit(record.Spec.Owned, inherited)
	if len(records) == len(record.Spec.Owned) {
		return nil
	}
	log.FromContext(ctx).Info("taking over from the old controller", obs.KeyResource, ref.String(), "identities", len(records)-len(record.Spec.Owned))
	return a.apply.Record(ctx, record, records)
}
