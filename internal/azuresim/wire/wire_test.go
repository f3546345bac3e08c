package wire_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// surface is one whose answer is up to the test.
func surface(serve func(*wire.Call) (wire.Reply, error)) wire.Surface {
	return wire.Surface{
		Name: "test", Serve: serve, Render: func(_ *wire.Call, e *wire.Error) any { return e.Error() },
		Headers: func() http.Header { return http.Header{"X-Surface": {"test"}} },
	}
}

// serve plays one request on a surface and returns the answer and the journal.
func serve(t *testing.T, s wire.Surface, req *http.Request, faults ...fault.Fault) (*http.Response, string, *journal.Journal) {
	t.Helper()
	rec := &wire.Recorder{
		Journal: journal.New(0, time.Now), Faults: &fault.Set{}, Log: slog.New(slog.DiscardHandler),
		NodeAt: func(addr netip.Addr) string { return "node-of-" + addr.String() },
	}
	for _, f := range faults {
		if _, err := rec.Faults.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	req.RemoteAddr = "[::ffff:10.0.0.7]:1234"
	rec.Handler(s).ServeHTTP(w, req)
	return w.Result(), strings.TrimSpace(w.Body.String()), rec.Journal
}

func TestHandler(t *testing.T) {
	for name, test := range map[string]struct {
		serve  func(*wire.Call) (wire.Reply, error)
		body   io.Reader
		fault  []fault.Fault
		status int
		answer string
		entry  journal.Entry
	}{
		"an answer": {
			func(call *wire.Call) (wire.Reply, error) {
				call.Entry.Principal = "p"
				return wire.Reply{Body: "<" + string(call.Body) + ">"}, nil
			}, strings.NewReader("hi"), nil, 200, `"<hi>"`, journal.Entry{Principal: "p", Status: 200},
		},
		"a refusal": {
			func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, wire.Refuse(403, "No", "not %s", "you") }, nil, nil,
			403, `"403 No: not you"`, journal.Entry{Status: 403, Code: "No"},
		},
		"an unexpected call": {
			func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, wire.Unexpected(404, "None", "what?") }, nil, nil,
			404, `"404 None: what?"`, journal.Entry{Status: 404, Code: "None", Unexpected: true, Detail: "what?"},
		},
		"an error of the simulator's own": {
			func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, errors.New("private words") }, nil, nil,
			500, `"500 InternalServerError: The server encountered an internal error."`,
			journal.Entry{Status: 500, Code: "InternalServerError", Unexpected: true, Detail: "private words"},
		},
		"a fault instead of the answer": {
			func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, errors.New("must not be called") }, nil,
			[]fault.Fault{{Response: fault.Response{Status: 503, Code: "Busy", Message: "later"}}},
			503, `"503 Busy: later"`, journal.Entry{Status: 503, Code: "Busy", Detail: "fault 1"},
		},
		"a body beyond all bounds": {
			func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, errors.New("must not be called") }, strings.NewReader(strings.Repeat("x", 5<<20)), nil,
			413, `"413 RequestEntityTooLarge: The request body is larger than 4194304 bytes."`,
			journal.Entry{Status: 413, Code: "RequestEntityTooLarge", Unexpected: true, Detail: "The request body is larger than 4194304 bytes."},
		},
		"a body that breaks off": {
			func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, errors.New("must not be called") }, brokenReader{}, nil,
			400, `"400 BadRequest: The request body could not be read."`, journal.Entry{Status: 400, Code: "BadRequest"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body, j := serve(t, surface(test.serve), httptest.NewRequestWithContext(t.Context(), "PUT", "https://h.example/p", test.body), test.fault...)
			if resp.StatusCode != test.status || body != test.answer || resp.Header.Get("X-Surface") != "test" {
				t.Errorf("got %d %s, want %d %s", resp.StatusCode, body, test.status, test.answer)
			}
			want := test.entry
			want.Seq, want.Surface, want.Method, want.Host, want.Path = 1, "test", "PUT", "h.example", "/p"
			want.Remote, want.Node = netip.MustParseAddr("10.0.0.7"), "node-of-10.0.0.7"
			got := j.Since(0)[0]
			got.Time = time.Time{}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("journal (-want +got):\n%s", diff)
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A client that has its answer finds the entry in the journal.
func TestEntryComesBeforeTheAnswer(t *testing.T) {
	rec := &wire.Recorder{
		Journal: journal.New(0, time.Now), Faults: &fault.Set{}, Log: slog.New(slog.DiscardHandler), NodeAt: func(netip.Addr) string { return "" },
	}
	handler := rec.Handler(surface(func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, nil }))
	w := &writer{ResponseRecorder: httptest.NewRecorder(), onWrite: func() {
		if n := len(rec.Journal.Since(0)); n != 1 {
			t.Errorf("the journal has %d entries when the answer is written", n)
		}
	}}
	handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
}

type writer struct {
	*httptest.ResponseRecorder
	onWrite func()
}

func (w *writer) WriteHeader(status int) {
	w.onWrite()
	w.ResponseRecorder.WriteHeader(status)
}

func TestQueryIsMasked(t *testing.T) {
	for raw, want := range map[string]string{
		"":                                 "",
		"api-version=1&resource=https://x": "api-version=1&resource=https://x",
		"access_token=abc&client_id=c":     "access_token=***&client_id=c",
		"api%2Dversion=1":                  "api%2Dversion=1",
		"%zz=abc":                          "%zz=***",
		"flag":                             "flag",
		"x=a=b":                            "x=***",
	} {
		req := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		req.URL.RawQuery = raw
		_, _, j := serve(t, surface(func(*wire.Call) (wire.Reply, error) { return wire.Reply{}, nil }), req)
		if got := j.Since(0)[0].Query; got != want {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
}

func TestQuery(t *testing.T) {
	for raw, words := range map[string]string{
		"":        "",
		"a=1&b=2": "",
		"a=1&c=2": "'c' is not known",
		"a=1&a=2": "'a' is given more than once",
		"A=1":     "'A' is not known",
		"a=%zz":   "cannot be parsed",
		"a=1;b=2": "cannot be parsed",
	} {
		call := &wire.Call{Request: httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)}
		call.URL.RawQuery = raw
		values, err := wire.Query(call, "a", "b")
		if words == "" {
			if err != nil || len(values) != strings.Count(raw, "=") {
				t.Errorf("%q: got %v, %v", raw, values, err)
			}
			continue
		}
		var refused *wire.Error
		if !errors.As(err, &refused) || !refused.Unexpected || !strings.Contains(refused.Message, words) {
			t.Errorf("%q: got %v, want an unexpected call that says %q", raw, err, words)
		}
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer abc": "abc", "bearer abc": "abc", "Bearer ": "", "Bearer": "", "Basic abc": "", "": "", "abc": "",
	} {
		req := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		req.Header.Set("Authorization", header)
		if got, ok := wire.Bearer(req); ok != (want != "") || ok && got != want {
			t.Errorf("%q: got %q, %v", header, got, ok)
		}
	}
}
