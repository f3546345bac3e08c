package attachment

import (
	"context"
	"errors"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

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
