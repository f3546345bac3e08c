package server

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"

	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
)

// trace ends the span of a request with what the audit line says of it. Names of
// attributes are OpenTelemetry's own where it has one.
func trace(span tracing.Span, method string, record *audit.Record) {
	if !span.On() {
		span.End()
		return
	}
	span.Set(
		attribute.String("http.request.method", knownMethod(method)),
		attribute.String("http.route", string(record.Route)),
		attribute.Int("http.response.status_code", record.Status),
		attribute.String("client.address", record.Remote.String()),
		attribute.String("k8s.namespace.name", record.Pod.Namespace),
		attribute.String("k8s.pod.name", record.Pod.Name),
		attribute.String("k8s.pod.uid", string(record.UID)),
		attribute.String("podidentity.identity", record.IdentityName()),
		attribute.String("podidentity.resource", record.ClippedResource()),
		attribute.String("podidentity.outcome", record.Outcome()),
		attribute.String("podidentity.reason", string(record.Reason)),
	)
	if record.Status >= http.StatusInternalServerError {
		span.Fail(string(record.Reason))
	}
	span.End()
}

// knownMethod keeps what a caller invents out of the traces.
func knownMethod(method string) string {
	if methodServed(method, true) {
		return method
	}
	return "_OTHER"
}
