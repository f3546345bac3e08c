package kube

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8sjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
)

// TestLines: events come one by one, however long they are and in what parts the
// network brings them, and what breaks off is no event.
func TestLines(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	event := func(name string) string { return `{"type":"ADDED","object":{"name":"` + name + `"}}` + "\n" }
	for name, c := range map[string]struct {
		text string
		want []string
		ends error
	}{
		"nothing":                                {ends: io.EOF},
		"one":                                    {text: event("a"), want: []string{"a"}, ends: io.EOF},
		"many":                                   {text: event("a") + event("b") + event("c"), want: []string{"a", "b", "c"}, ends: io.EOF},
		"long ones between short ones":           {text: event("a") + event(long) + event("b") + event(long+long), want: []string{"a", long, "b", long + long}, ends: io.EOF},
		"one as long as the buffer":              {text: event(long[:16<<10-len(event(""))]) + event("b"), want: []string{long[:16<<10-len(event(""))], "b"}, ends: io.EOF},
		"one that breaks off":                    {text: event("a") + event("b")[:20], want: []string{"a"}, ends: io.ErrUnexpectedEOF},
		"a long one that breaks off":             {text: event("a") + event(long)[:40<<10], want: []string{"a"}, ends: io.ErrUnexpectedEOF},
		"one that breaks off where a buffer did": {text: event("a") + event(long)[:16<<10-len(event("a"))] + event(long)[:16<<10], want: []string{"a"}, ends: io.ErrUnexpectedEOF},
	} {
		for network, slow := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "with its end": iotest.DataErrReader,
		} {
			t.Run(name+", "+network, func(t *testing.T) {
				reader := lines{k8sjson.Framer}.NewFrameReader(io.NopCloser(slow(strings.NewReader(c.text))))
				decoder := streaming.NewDecoder(reader, events{usual()})
				var got []string
				for {
					var event metav1.WatchEvent
					if _, _, err := decoder.Decode(nil, &event); err != nil {
						if !errors.Is(err, c.ends) {
							t.Errorf("it ends by %v, want %v", err, c.ends)
						}
						break
					}
					got = append(got, strings.TrimSuffix(strings.TrimPrefix(string(event.Object.Raw), `{"name":"`), `"}`))
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("(-want +got):\n%.1000s", diff)
				}
			})
		}
	}
}

func usual() runtime.Serializer {
	return k8sjson.NewSerializerWithOptions(k8sjson.DefaultMetaFactory, nil, runtime.NewScheme(), k8sjson.SerializerOptions{})
}

// FuzzEvent: an event that is taken apart is what a usual client reads, and of what
// is none they say the same.
func FuzzEvent(f *testing.F) {
	for _, text := range []string{
		`{"type":"ADDED","object":{"apiVersion":"v1","kind":"Pod"}}` + "\n",
		`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}`,
		`{"type":"ERROR","object":{"kind":"Status","code":410}}` + "\n",
		`{"type":"ADDED","object":{"a":"}"},"more":{}}` + "\n",
		`{"type":"ADDED","object":{},"type":"DELETED"}` + "\n",
		`{"type":"ADDED","more":"","object":{}}` + "\n",
		`{"type":"A\u0044DED","object":{}}` + "\n",
		`{"type":"ADDED","object":null}` + "\n",
		`{"type":"ADDED","object":[]}` + "\n",
		`{"type":"ADDED","object":{}}}` + "\n",
		`{"type":"ADDED", "object": {}}` + "\n",
		`{"object":{},"type":"ADDED"}` + "\n",
		`{"type":"ADDED","object":{}`,
		`{"type":"ADDED"}`,
		"{}\n", "\n", "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var want, got metav1.WatchEvent
		_, _, errWant := usual().Decode(bytes.Clone(data), nil, &want)
		_, _, errGot := events{usual()}.Decode(bytes.Clone(data), nil, &got)
		if (errGot == nil) != (errWant == nil) {
			t.Fatalf("got error %v, want %v", errGot, errWant)
		}
		if diff := cmp.Diff(want, got); errWant == nil && diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
