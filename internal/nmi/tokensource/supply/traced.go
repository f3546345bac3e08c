package supply

import (
	"context"

	"go.opentelemetry.io/otel/attribute"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Traced returns the source with a span for each request to it, also of those that
// replace tokens ahead of their end. A nil tracer leaves the source as it is.
func Traced(source tokensource.Source, tracer *tracing.Tracer) tokensource.Source {
	if tracer == nil {
		return source
	}
	return &traced{source, tracer}
}

type traced struct {
	source tokensource.Source
	tracer *tracing.Tracer
}

// Token asks the source.
func (t *traced) Token(ctx context.Context, request tokensource.Request) (imds.Token, error) {
	ctx, span := t.tracer.Client(ctx, "upstream")
	defer span.End()
	token, err := t.source.Token(ctx, request)
	if span.On() {
		span.Set(
			attribute.String("podidentity.identity", request.Identity.String()),
			attribute.String("podidentity.kind", request.Identity.Kind.String()),
			attribute.String("podidentity.resource", request.Resource),
		)
	}
	if err != nil {
		span.Fail(string(refusal.Of(err).Reason))
	}
	return token, err
}
