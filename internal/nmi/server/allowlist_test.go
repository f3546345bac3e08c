package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

// judge fails if a request that reached the service is not one that whoever
// sent it may send, or holds anything beside what we set.
func judge(t *testing.T, from string, list []string, got *http.Request) {
	t.Helper()
	excepted := from == exceptedPod
	if p := got.URL.EscapedPath(); !allowed(p, list, excepted) || !excepted && p == imds.TokenPath {
		t.Errorf("reached the service as %q", got.RequestURI)
	}
	if got.Method != http.MethodGet && (got.Method != http.MethodPost || !excepted) {
		t.Errorf("reached the service by %s", got.Method)
	}
	if rebuilt, err := imds.RebuildQuery(got.URL.RawQuery); err != nil || rebuilt != got.URL.RawQuery || got.URL.Fragment != "" {
		t.Errorf("reached the service with the query %q", got.URL.RawQuery)
	}
	for name, values := range got.Header {
		known := []string{"Metadata", "Accept", "Content-Type", "User-Agent", "X-Ms-Client-Request-Id", "Content-Length", "Accept-Encoding"}
		if !slices.Contains(known, name) || len(values) != 1 || name == "Metadata" && values[0] != "true" {
			t.Errorf("reached the service with the header %s: %q", name, values)
		}
	}
	if len(got.TransferEncoding) > 0 || got.Method == http.MethodGet && got.ContentLength != 0 {
		t.Errorf("reached the service with a body: %v, %d bytes", got.TransferEncoding, got.ContentLength)
	}
}

// Nothing but the list reaches upstream, whoever sends it, and no path is ever
// answered with a redirect.
func TestPathCorpus(t *testing.T) {
	for name, list := range map[string][]string{"nothing is listed": nil, "all is listed": Listable()} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Listed = list })
			for _, target := range corpus() {
				for _, from := range []string{plainPod, exceptedPod} {
					before := len(b.forwarded())
					response, _ := b.send(from, get(target))
					if status := response.StatusCode; status >= 300 && status < 400 || status >= 500 {
						t.Errorf("%q: %s", target, response.Status)
					}
					for _, got := range b.forwarded()[before:] {
						judge(t, from, list, got)
					}
				}
			}
			if len(b.forwarded()) == 0 {
				t.Error("the corpus holds nothing that is forwarded")
			}
		})
	}
}

// The head of a request is not copied, however it is written.
func TestHeadersAreNotCopied(t *testing.T) {
	b := newBench(t, nil)
	response, _ := b.send(exceptedPod, get("/metadata/identity/oauth2/token?resource=r",
		"Accept: application/json", "User-Agent: sdk/1", "X-Ms-Client-Request-Id: 7", "Authorization: Bearer x", "Cookie: a=b", "X-Forwarded-Host: h",
		"Forwarded: for=1.2.3.4", "Proxy-Authorization: x", "Te: trailers", "Upgrade: websocket", "X-Real-Ip: 1.2.3.4", "X-Original-Url: /metadata/identity/info"))
	if response.StatusCode != http.StatusTeapot {
		t.Fatal(response.Status)
	}
	got := b.forwarded()[0]
	judge(t, exceptedPod, nil, got)
	want := http.Header{"Accept": {"application/json"}, "User-Agent": {"sdk/1"}, "X-Ms-Client-Request-Id": {"7"}, "Metadata": {"true"}}
	got.Header.Del("Accept-Encoding")
	if diff := cmp.Diff(want, got.Header); diff != "" {
		t.Error(diff)
	}
	if got.Host != got.Context().Value(http.LocalAddrContextKey).(net.Addr).String() {
		t.Errorf("asked for host %q", got.Host)
	}
}

func TestAnswersAreNotCopiedBlindly(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		status int
		check  func(*testing.T, *http.Response, string)
	}{
		"headers of the connection stay": {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Secret\r\nX-Secret: a\r\nKeep-Alive: timeout=5\r\nX-Other: b\r\n\r\nok", 200, func(t *testing.T, r *http.Response, body string) {
			if r.Header.Get("X-Secret") != "" || r.Header.Get("Keep-Alive") != "" || r.Header.Get("X-Other") != "b" || body != "ok" {
				t.Errorf("got %v %s", r.Header, body)
			}
		}},
		"a redirect is not followed": {"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/metadata/identity/info\r\nContent-Length: 0\r\n\r\n", 302, func(t *testing.T, r *http.Response, _ string) {
			if r.Header.Get("Location") == "" {
				t.Error("no Location")
			}
		}},
		"another protocol":     {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 503, nil},
		"not HTTP":             {"SSH-2.0-x\r\n", 503, nil},
		"no answer":            {"", 503, nil},
		"a length that is not": {"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", 503, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Upstream = answering(t, test.answer) })
			response, body := b.send(plainPod, get("/metadata/instance"))
			if response.StatusCode != test.status {
				t.Errorf("%s: %s", response.Status, body)
			}
			if test.check != nil {
				test.check(t, response, body)
			}
		})
	}
}

// An answer that breaks off, or does not end, must not look like a whole one.
func TestHalfAnAnswerIsNoAnswer(t *testing.T) {
	for name, answer := range map[string]string{
		"it breaks off":   "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"it does not end": "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", maxForwardedAnswer+1),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Upstream = answering(t, answer) })
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(plainPod)}}
			connection, err := dialer.DialContext(t.Context(), "tcp", b.address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = connection.Close() }()
			if _, err := io.WriteString(connection, get("/metadata/instance")); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(bufio.NewReader(connection), nil)
			if err != nil {
				return // not even begun
			}
			if _, err := io.ReadAll(response.Body); err == nil {
				t.Error("the caller took it for whole")
			}
		})
	}
}

// FuzzServer sends requests that are hostile in every part, over TCP, from a pod
// and from an excepted one. Nothing may reach the recording service that is not
// on the list, and nothing may be answered with a mistake of ours.
func FuzzServer(f *testing.F) {
	for _, target := range corpus() {
		f.Add("GET", target, "X-A: b", "")
	}
	f.Add("POST", "/metadata/scheduledevents", "Content-Length: 2", "{}")
	f.Add("GET", "/metadata/instance?a=b", "Transfer-Encoding: chunked", "1\r\nx\r\n0\r\n\r\n")
	f.Add("GET", "/metadata/instance", "Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\nGET /metadata/identity/info HTTP/1.1\r\n\r\n")
	f.Add("GET", "/metadata/instance HTTP/1.1\r\nHost: x\r\n\r\nGET /metadata/identity/info", "A: b", "")
	f.Add("GET", "/metadata/identity/oauth2/token?resource=r&resource=s", "Metadata: true", "")
	f.Add("CONNECT", "169.254.169.254:80", "A: b", "")
	f.Add("PRI", "*", "A: b", "SM\r\n\r\n")
	// Each has its own service: a request can still be on its way there when the
	// answer has been read.
	benches := map[string]*bench{plainPod: newBench(f, nil), exceptedPod: newBench(f, nil)}
	judged := map[string]int{}
	f.Fuzz(func(t *testing.T, method, target, header, body string) {
		for from, b := range benches {
			for _, status := range exchange(t, b, from, method+" "+target+" HTTP/1.1\r\nHost: h\r\nMetadata: true\r\n"+header+"\r\n\r\n"+body) {
				if status == http.StatusInternalServerError || status >= 300 && status < 400 {
					t.Errorf("answered %d", status)
				}
			}
			all := b.forwarded()
			for _, got := range all[judged[from]:] {
				judge(t, from, nil, got)
			}
			judged[from] = len(all)
		}
	})
}

// exchange sends bytes, says that there are no more, and returns the statuses of
// all answers.
func exchange(t *testing.T, b *bench, from, request string) []int {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	connection, err := dialer.DialContext(t.Context(), "tcp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	if err := connection.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The server may have hung up on half of it.
	_, _ = io.WriteString(connection, request)
	_ = connection.(*net.TCPConn).CloseWrite()
	var out []int
	for reader := bufio.NewReader(connection); ; {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return out
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return out
		}
		out = append(out, response.StatusCode)
	}
}

// Every way to name a query variable twice is a mistake, however it is hidden.
func TestDuplicateParameters(t *testing.T) {
	b := newBench(t, nil)
	for _, query := range []string{"client_id=a&client_id=b", "client_id=a&Client_Id=b", "client_id=a&client%5Fid=b", "client_id=a&client_id=", "resource=s", "api-version=1&api-version=1", "x=1&x=2"} {
		response, body := b.send(plainPod, get("/metadata/identity/oauth2/token?resource=r&"+query))
		if response.StatusCode != http.StatusBadRequest || !strings.Contains(body, "more than once") {
			t.Errorf("%s: %s %s", query, response.Status, body)
		}
		if _, err := url.ParseQuery(query); err != nil {
			t.Error(err)
		}
	}
}
