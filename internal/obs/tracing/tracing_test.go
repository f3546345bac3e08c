package tracing_test

import (
	"context"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/test/otlp"
)

func open(t *testing.T) (*tracing.Tracer, error) {
	t.Helper()
	return tracing.New(t.Context(), "service", "v1.2.3", "node-a")
}

func TestWhenThereAreTraces(t *testing.T) {
	const endpoint = "http://127.0.0.1:1"
	for name, test := range map[string]struct {
		environment map[string]string
		on          bool
		words       string
	}{
		"nothing is set":             {nil, false, ""},
		"an endpoint":                {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, true, ""},
		"an endpoint of traces":      {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}, true, ""},
		"one of metrics":             {map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint}, false, ""},
		"switched off":               {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "true"}, false, ""},
		"no exporter":                {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}, false, ""},
		"the protocol that there is": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, true, ""},
		"another protocol":           {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, "want http/protobuf"},
		"another exporter":           {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "zipkin"}, false, "want otlp or none"},
	} {
		t.Run(name, func(t *testing.T) {
			for key, value := range test.environment {
				t.Setenv(key, value)
			}
			tracer, err := open(t)
			if (tracer != nil) != test.on || (err != nil) != (test.words != "") || err != nil && !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, %v", tracer, err)
			}
			if err := tracer.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSpansReachTheCollector(t *testing.T) {
	collector := otlp.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
	tracer, err := open(t)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	inside, request := tracer.Server(ctx, "request")
	step, decide := tracing.Child(inside, "decide")
	_, deeper := tracing.Child(step, "deeper")
	deeper.End()
	decide.Set(attribute.String("k", "v"))
	decide.End()
	_, upstream := tracer.Client(inside, "upstream")
	upstream.Fail("Refused")
	upstream.End()
	request.End()
	_, other := tracer.Server(inside, "another request")
	other.End()
	cancel() // the last spans are sent all the same
	if err := tracer.Close(ctx); err != nil {
		t.Fatal(err)
	}
	spans := collector.Spans()
	if len(spans) != 5 {
		t.Fatalf("got %+v", spans)
	}
	root := spans[0]
	for i, want := range []struct{ name, kind, parent string }{
		{"request", "SPAN_KIND_SERVER", ""}, {"decide", "SPAN_KIND_INTERNAL", root.ID}, {"deeper", "SPAN_KIND_INTERNAL", spans[1].ID},
		{"upstream", "SPAN_KIND_CLIENT", root.ID}, {"another request", "SPAN_KIND_SERVER", ""},
	} {
		got := spans[i]
		if got.Name != want.name || got.Kind != want.kind || got.Parent != want.parent || (got.Trace == root.Trace) != (i < 4) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if spans[1].Attributes["k"] != "v" || spans[3].Failed != "Refused" || root.Failed != "" {
		t.Errorf("got %+v", spans)
	}
	for key, want := range map[string]string{"service.name": "service", "service.version": "v1.2.3", "k8s.node.name": "node-a", "deployment.environment": "test"} {
		if got := root.Resource[key]; got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

// Without a collector, nothing may cost anything.
func TestWithoutACollectorNothingIsAllocated(t *testing.T) {
	var tracer *tracing.Tracer
	ctx := t.Context()
	if got := testing.AllocsPerRun(100, func() {
		inside, span := tracer.Server(ctx, "request")
		_, child := tracing.Child(inside, "decide")
		_, out := tracer.Client(inside, "upstream")
		if span.On() || child.On() || out.On() {
			t.Error("a span records")
		}
		out.Fail("x")
		out.End()
		child.End()
		span.End()
	}); got > 0 {
		t.Errorf("%v allocations", got)
	}
}
