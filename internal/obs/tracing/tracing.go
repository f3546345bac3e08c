// Package tracing sends what happens to requests as OpenTelemetry spans to a
// collector, where the standard variables of the environment name one.
//
// Where they do not, it costs nothing. It must not know what is traced, and nothing
// secret may become an attribute.
package tracing

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// The variables that switch tracing on. What else of OTEL_* there is, of the
// exporter, the sampler, the batches and the resource, has its standard meaning.
const (
	endpointVariable       = "OTEL_EXPORTER_OTLP_ENDPOINT"
	tracesEndpointVariable = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	protocolVariable       = "OTEL_EXPORTER_OTLP_PROTOCOL"
	tracesProtocolVariable = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	exporterVariable       = "OTEL_TRACES_EXPORTER"
	disabledVariable       = "OTEL_SDK_DISABLED"
)

// protocol is the one that is spoken, which is also the standard's default.
const protocol = "http/protobuf"

// flush bounds how long the last spans may take to be sent.
const flush = 5 * time.Second

// Tracer makes spans. The nil Tracer makes none.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// wanted reports whether the environment switches tracing on, or says what is
// wrong with it.
func wanted(getenv func(string) string) (bool, error) {
	if strings.EqualFold(getenv(disabledVariable), "true") || getenv(exporterVariable) == "none" || getenv(endpointVariable)+getenv(tracesEndpointVariable) == "" {
		return false, nil
	}
	if exporter := getenv(exporterVariable); exporter != "" && exporter != "otlp" {
		return false, fmt.Errorf("%s is %q: want otlp or none", exporterVariable, exporter)
	}
	if got := cmp.Or(getenv(tracesProtocolVariable), getenv(protocolVariable), protocol); got != protocol {
		return false, fmt.Errorf("%s is %q: want %s", protocolVariable, got, protocol)
	}
	return true, nil
}

// New returns a tracer of a program, or nil if the environment asks for none. It
// does not connect. What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes
// before the given name, version and node.
func New(ctx context.Context, service, version, node string) (*Tracer, error) {
	on, err := wanted(os.Getenv)
	if err != nil || !on {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("preparing the exporter of traces: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version), attribute.String("k8s.node.name", node)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("reading what describes the program in traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return &Tracer{provider: provider, tracer: provider.Tracer(service)}, nil
}

// Close sends what is left.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flush)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("sending the last traces: %w", err)
	}
	return nil
}

// Server begins the span of a request that came in. Whoever sent it is not asked
// for a trace that it belongs to: a pod has no say in what is recorded.
func (t *Tracer) Server(ctx context.Context, name string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithNewRoot())
	return ctx, Span{span}
}

// Client begins the span of a request that goes out.
func (t *Tracer) Client(ctx context.Context, name string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
	return ctx, Span{span}
}

// Child begins the span of a step of what the context is in. Outside of a span it
// begins none.
func Child(ctx context.Context, name string) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer("").Start(ctx, name)
	return ctx, Span{span}
}

// Span is a piece of work. The zero Span is none, and takes nothing.
type Span struct{ span trace.Span }

// On reports whether the span records anything: only then are attributes worth
// being made.
func (s Span) On() bool { return s.span != nil && s.span.IsRecording() }

// Set adds attributes. None may hold a token, a secret or a body.
func (s Span) Set(attributes ...attribute.KeyValue) {
	if s.span != nil {
		s.span.SetAttributes(attributes...)
	}
}

// Fail says that the work failed, in one word.
func (s Span) Fail(reason string) {
	if s.span != nil {
		s.span.SetStatus(codes.Error, reason)
	}
}

// End ends the span.
func (s Span) End() {
	if s.span != nil {
		s.span.End()
	}
}
