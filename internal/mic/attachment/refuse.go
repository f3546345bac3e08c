package attachment

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

// newPass takes up what the passes before have written.
func (r *Reconciler) newPass(ref compute.Ref, record *v1.AzureIdentityAttachment, needs []observe.Need) *pass {
	p := &pass{Reconciler: r, ref: ref, record: record, needs: needs, quarantine: quarantine.Parse(record.Status), unconfirmed: report.Unconfirmed(record.Status)}
	p.recall()
	return p
}

// snapshot is what a plan of the resource depends on, as far as it is known now.
func (p *pass) snapshot(ctx context.Context, needs []observe.Need) (plan.Snapshot, error) {
	wanted := observe.Wanted(needs)
	named, err := p.observe.Named(ctx, slices.AppendSeq(slices.Clone(wanted), maps.Keys(p.quarantine.Refused)))
	if err != nil {
		return plan.Snapshot{}, err
	}
	p.inUse = len(wanted)+len(p.record.Spec.Owned) > 0
	return plan.Snapshot{
		Seen: *p.seen, Wanted: wanted, Named: named, Quarantine: p.quarantine, Unconfirmed: p.unconfirmed,
		Records: p.record.Spec.Owned, Now: p.options.Now(),
	}, nil
}

// refuse takes ARM's refusal of a patch for the batch in. It is written before
// the next patch is sent.
func (p *pass) refuse(ctx context.Context, batch []armid.ID, bad *armclient.BadIdentitiesError) error {
	named, err := p.observe.Named(ctx, batch)
	if err != nil {
		return err
	}
	log.FromContext(ctx).Info("ARM refuses identities", "asked", len(batch), "named", len(bad.IDs), "code", bad.Code)
	reason, message := report.Explain(bad)
	p.quarantine = p.quarantine.Refuse(quarantine.Failure{
		Batch: batch, Named: bad.IDs, Reason: reason, Message: message,
		Identities: func(id armid.ID) []string { return named[id].Objects }, Now: p.options.Now(),
	}, quarantine.Rules{Min: p.options.QuarantineMin, Max: p.options.QuarantineMax, Random: p.options.Random})
	return nil
}

// isDeleting reports whether a failure is that the resource goes.
func isDeleting(failure error) bool {
	_, deleting := errors.AsType[*armclient.DeletingError](failure)
	return deleting
}

// rest is how long the resource is left alone after a pass without a failure;
// zero is until something happens.
func (p *pass) rest() time.Duration {
	var out time.Duration
	sooner := func(d time.Duration) {
		if out == 0 || d < out {
			out = d
		}
	}
	if p.wait {
		sooner(lookAgain)
	}
	if !p.again.IsZero() {
		sooner(max(p.again.Sub(p.options.Now()), cacheLag))
	}
	if every := p.options.ReconcileInterval; every > 0 && p.inUse {
		sooner(time.Duration(float64(every) * (0.9 + 0.2*p.options.Random()))) // not all at one time
	}
	return out
}
