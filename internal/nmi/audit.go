package nmi

import (
	"context"

	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
)

// decided counts and logs decisions.
func (r *runner) decided() func(context.Context, *audit.Record) {
	sample := audit.NewSampler(r.options.AuditEvery)
	return func(_ context.Context, record *audit.Record) {
		r.metrics.Decided(record)
		if sample.Worth(record) {
			r.audit.Write(record)
		}
	}
}
