// Package otlp is a collector of OpenTelemetry traces for tests: it speaks the wire,
// http/protobuf, on loopback.
//
// It must not know what is traced.
package otlp

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector keeps what it is sent.
type Collector struct {
	// URL is the endpoint, as OTEL_EXPORTER_OTLP_ENDPOINT has it.
	URL string

	mu       sync.Mutex // protects all following fields
	raw      []byte
	received []*tracev1.ResourceSpans
}

// Start starts a collector that ends with the test. A request that is no export of
// traces fails the test.
func Start(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.take(r); err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s (%s): %v", r.Method, r.URL, r.Header.Get("Content-Type"), err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-protobuf") // the empty message is no bytes at all
	}))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

func (c *Collector) take(r *http.Request) error {
	reader := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(r.Body)
		if err != nil {
			return err
		}
		reader = unzipped
	}
	body, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	var request collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, body...)
	c.received = append(c.received, request.GetResourceSpans()...)
	return nil
}

// Raw returns all bytes that came, uncompressed.
func (c *Collector) Raw() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.raw)
}

// Span is what tests look at of a span.
type Span struct {
	Name, Kind        string
	Trace, ID, Parent string
	Failed            string // the status' message, if it is one of an error
	Attributes        map[string]string
	Resource          map[string]string
}

// Spans returns all spans that came, by the time of their beginning.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Span
	var begun []uint64
	for _, from := range c.received {
		for _, scope := range from.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				i, _ := slices.BinarySearch(begun, s.GetStartTimeUnixNano())
				begun = slices.Insert(begun, i, s.GetStartTimeUnixNano())
				out = slices.Insert(out, i, spanOf(s, from.GetResource().GetAttributes()))
			}
		}
	}
	return out
}

func spanOf(s *tracev1.Span, resource []*common.KeyValue) Span {
	out := Span{
		Name: s.GetName(), Kind: s.GetKind().String(), Trace: string(s.GetTraceId()), ID: string(s.GetSpanId()), Parent: string(s.GetParentSpanId()),
		Attributes: texts(s.GetAttributes()), Resource: texts(resource),
	}
	if s.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR {
		out.Failed = s.GetStatus().GetMessage()
	}
	return out
}

// texts returns attributes as text; numbers are left out.
func texts(pairs []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, pair := range pairs {
		if text, ok := pair.GetValue().GetValue().(*common.AnyValue_StringValue); ok {
			out[pair.GetKey()] = text.StringValue
		}
	}
	return out
}
