package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// The pods of the tests, by their addresses.
const (
	plainPod    = "127.0.0.2"
	exceptedPod = "127.0.0.3"
	stranger    = "127.0.0.9"
)

var now = time.Unix(1_700_000_000, 0)

// pods is an Agent that knows two pods.
type pods struct {
	answer func(imds.TokenRequest) (imds.Answer, error)
}

func (p pods) Named(_ context.Context, key identity.Key, record *audit.Record) (Caller, error) {
	if key != (identity.Key{Namespace: "ns", Name: "pod"}) {
		return nil, refusal.New(v1.ReasonCallerUnknown, "no pod %s on this node", key)
	}
	record.Pod = key
	return pod{answer: p.answer}, nil
}

func (p pods) Identify(_ context.Context, remote netip.Addr, _ bool, record *audit.Record) (Caller, error) {
	switch remote.String() {
	case plainPod, exceptedPod:
		record.Pod = identity.Key{Namespace: "ns", Name: remote.String()}
		return pod{excepted: remote.String() == exceptedPod, answer: p.answer}, nil
	}
	return nil, refusal.New(v1.ReasonCallerUnknown, "no pod has the address %s", remote)
}

type pod struct {
	excepted bool
	answer   func(imds.TokenRequest) (imds.Answer, error)
}

func (p pod) Excepted() bool { return p.excepted }

func (p pod) Token(_ context.Context, request imds.TokenRequest, _ *audit.Record) (imds.Answer, error) {
	return p.answer(request)
}

func issue(request imds.TokenRequest) (imds.Answer, error) {
	return imds.Answer{Token: imds.NewToken("token-for-"+request.ClientID, imds.Token{
		ClientID: request.ClientID, Resource: request.Resource, Type: "Bearer", ExpiresOn: now.Add(time.Hour), NotBefore: now,
	})}, nil
}

// bench is a server before an upstream, both on loopback.
type bench struct {
	t       testing.TB
	address string

	mu       sync.Mutex // protects all following fields
	upstream []*http.Request
	records  []audit.Record
}

func newBench(t testing.TB, change func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r = r.Clone(context.WithoutCancel(r.Context()))
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		b.mu.Lock()
		b.upstream = append(b.upstream, r)
		b.mu.Unlock()
		w.Header().Set("X-Upstream", "yes")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "from upstream") // a caller that left shows elsewhere
	}))
	t.Cleanup(upstream.Close)
	options := Options{
		Agent: pods{issue}, Upstream: netip.MustParseAddrPort(strings.TrimPrefix(upstream.URL, "http://")),
		Now: func() time.Time { return now },
		Done: func(_ context.Context, record *audit.Record) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.records = append(b.records, *record)
		},
	}
	if change != nil {
		change(&options)
	}
	front := httptest.NewServer(New(options))
	t.Cleanup(front.Close)
	b.address = strings.TrimPrefix(front.URL, "http://")
	return b
}

// send writes a request as it is, from an address, and reads the answer.
func (b *bench) send(from, request string) (*http.Response, string) {
	b.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	connection, err := dialer.DialContext(b.t.Context(), "tcp", b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	if _, err := io.WriteString(connection, request); err != nil {
		b.t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	response, err := http.ReadResponse(bufio.NewReader(connection), &http.Request{Method: method})
	if err != nil {
		b.t.Fatalf("%q: %v", request, err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return response, string(body)
}

func get(target string, headers ...string) string { return request("GET", target, headers...) }

func request(method, target string, headers ...string) string {
	headers = append(headers, "Metadata: true")
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n%s\r\n\r\n", method, target, strings.Join(headers, "\r\n"))
}

func (b *bench) last() audit.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records[len(b.records)-1]
}

func (b *bench) forwarded() []*http.Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.upstream
}

func errorOf(t testing.TB, body string) (code, description string) {
	t.Helper()
	var out map[string]string
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		t.Fatalf("body %q: %v", body, err)
	}
	return out["error"], out["error_description"]
}

func TestTokenIsAnsweredAsTheServiceDoes(t *testing.T) {
	for name, target := range map[string]string{
		"canonical":      "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net&client_id=c1",
		"trailing slash": "/metadata/identity/oauth2/token/?resource=https://vault.azure.net&client_id=c1",
		"any case":       "/Metadata/identity/oauth2/token?client_id=c1&resource=https://vault.azure.net",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			response, body := b.send(plainPod, get(target))
			want := `{"access_token":"token-for-c1","client_id":"c1","expires_in":"3600","expires_on":"1700003600","ext_expires_in":"3600","not_before":"1700000000","resource":"https://vault.azure.net","token_type":"Bearer"}`
			if diff := cmp.Diff(want, body); diff != "" || response.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", response.Status, diff)
			}
			if response.ContentLength != int64(len(want)) || response.Header.Get("Content-Type") != "application/json; charset=utf-8" {
				t.Errorf("headers %v", response.Header)
			}
			if got := b.last(); got.Reason != v1.ReasonIssued || got.Status != 200 || got.Resource != "https://vault.azure.net" || got.Route != audit.RouteToken {
				t.Errorf("recorded %+v", got)
			}
			if len(b.forwarded()) > 0 {
				t.Error("reached upstream")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	const tokenTarget = "/metadata/identity/oauth2/token?resource=r"
	raw := func(method, target, headers string) string {
		return method + " " + target + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + headers + "\r\n"
	}
	for name, test := range map[string]struct {
		request string
		from    string
		change  func(*Options)
		status  int
		reason  v1.Reason
		words   string
	}{
		"no header":                  {raw("GET", tokenTarget, ""), plainPod, nil, 400, v1.ReasonInvalidRequest, "Required metadata header not specified"},
		"no header, from a stranger": {raw("GET", tokenTarget, ""), stranger, nil, 400, v1.ReasonInvalidRequest, "Required metadata header not specified"},
		"no header, excepted":        {raw("GET", tokenTarget, ""), exceptedPod, nil, 400, v1.ReasonInvalidRequest, "Required metadata header not specified"},
		"no header, off the list":    {raw("GET", "/doesnotexist", ""), plainPod, nil, 400, v1.ReasonInvalidRequest, "Required metadata header not specified"},
		"forwarded":                  {get(tokenTarget, "X-Forwarded-For: 10.0.0.1"), plainPod, nil, 400, v1.ReasonForbiddenHeader, "X-Forwarded-For"},
		"forwarded, excepted":        {get(tokenTarget, "x-forwarded-for: 10.0.0.1"), exceptedPod, nil, 400, v1.ReasonForbiddenHeader, "X-Forwarded-For"},
		"no resource":                {get("/metadata/identity/oauth2/token"), plainPod, nil, 400, v1.ReasonInvalidRequest, "'resource' is missing"},
		"duplicate":                  {get(tokenTarget + "&client_id=a&client_id=b"), plainPod, nil, 400, v1.ReasonInvalidRequest, "more than once"},
		"POST":                       {request("POST", tokenTarget, "Content-Length: 0"), plainPod, nil, 405, v1.ReasonMethodNotAllowed, "POST"},
		"HEAD":                       {request("HEAD", tokenTarget), plainPod, nil, 405, v1.ReasonMethodNotAllowed, ""},
		"PUT of metadata":            {request("PUT", "/metadata/instance", "Content-Length: 0"), plainPod, nil, 405, v1.ReasonMethodNotAllowed, "PUT"},
		"stranger":                   {get(tokenTarget), stranger, nil, 404, v1.ReasonCallerUnknown, "no pod has the address"},
		"stranger, compatibility":    {get(tokenTarget), stranger, func(o *Options) { o.RetryAfter = true }, 503, v1.ReasonCallerUnknown, "no pod has the address"},
		"stranger, instance":         {get("/metadata/instance"), stranger, nil, 404, v1.ReasonCallerUnknown, "no pod has the address"},
		"unknown identity route":     {get("/metadata/identity/issuecredential"), plainPod, nil, 404, v1.ReasonNotServed, "not served"},
		"the same, excepted":         {get("/metadata/Identity/oauth2/token?resource=r"), exceptedPod, nil, 404, v1.ReasonNotServed, "not served"},
		"for excepted pods only":     {get("/metadata/attested/document"), plainPod, nil, 404, v1.ReasonNotServed, "not served"},
		"a stranger there":           {get("/metadata/attested/document"), stranger, nil, 404, v1.ReasonNotServed, "not served"},
		"off the list":               {get("/host/token?resource=r"), exceptedPod, nil, 404, v1.ReasonNotServed, "not served"},
		"malformed":                  {get("/metadata/identity%2foauth2/token?resource=r"), exceptedPod, nil, 400, v1.ReasonInvalidRequest, "Invalid request"},
		"blocked":                    {get("/metadata/instance?api-version=2021-02-01"), exceptedPod, func(o *Options) { o.BlockInstanceMetadata = true }, 403, v1.ReasonBlocked, "not given to pods"},
		"blocked in any case":        {get("/metadata/iNstance/x"), plainPod, func(o *Options) { o.BlockInstanceMetadata = true }, 403, v1.ReasonBlocked, "not given to pods"},
		"a query of two readings":    {get("/metadata/identity/oauth2/token?a;b"), exceptedPod, nil, 400, v1.ReasonInvalidRequest, "semicolon"},
		"writing what is listed":     {request("POST", "/metadata/scheduledevents", "Content-Length: 0"), plainPod, func(o *Options) { o.Listed = Listable() }, 405, v1.ReasonMethodNotAllowed, "POST"},
		"another case of the listed": {get("/metadata/ScheduledEvents"), plainPod, func(o *Options) { o.Listed = Listable() }, 404, v1.ReasonNotServed, "not served"},
		"too much to write":          {request("POST", "/metadata/scheduledevents", "Content-Length: 70000") + strings.Repeat("x", 70000), exceptedPod, nil, 400, v1.ReasonInvalidRequest, "longer than"},
		"nobody upstream":            {get("/metadata/instance"), plainPod, func(o *Options) { o.Upstream = netip.MustParseAddrPort("127.0.0.1:1") }, 503, v1.ReasonUpstreamUnavailable, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, test.change)
			response, body := b.send(test.from, test.request)
			if response.StatusCode != test.status {
				t.Errorf("status %s, want %d: %s", response.Status, test.status, body)
			}
			if got := b.last(); got.Reason != test.reason || got.Status != test.status {
				t.Errorf("recorded %+v, want %s", got, test.reason)
			}
			if body != "" {
				if _, description := errorOf(t, body); !strings.Contains(description, test.words) {
					t.Errorf("body %s does not say %q", body, test.words)
				}
			}
			if len(b.forwarded()) > 0 {
				t.Error("reached upstream")
			}
		})
	}
}

func TestTheHeaderErrorIsTheServicesOwn(t *testing.T) {
	_, body := newBench(t, nil).send(plainPod, "GET /metadata/identity/oauth2/token HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	want := `{"error":"invalid_request","error_description":"Required metadata header not specified"}`
	if diff := cmp.Diff(want, body); diff != "" {
		t.Error(diff)
	}
}

func TestEveryReasonHasItsStatus(t *testing.T) {
	for reason, want := range map[v1.Reason]struct {
		status, compatible int
		retryAfter         string
	}{
		v1.ReasonNotSelected:             {400, 400, ""},
		v1.ReasonUnknownIdentity:         {400, 400, ""},
		v1.ReasonUpstreamRefused:         {400, 400, ""},
		v1.ReasonNotBound:                {403, 403, ""},
		v1.ReasonNamespaceMismatch:       {403, 403, ""},
		v1.ReasonInvalidIdentity:         {403, 403, ""},
		v1.ReasonInvalidBinding:          {403, 403, ""},
		v1.ReasonNameConflict:            {403, 403, ""},
		v1.ReasonUnsupportedIdentityType: {403, 403, ""},
		v1.ReasonNoBinding:               {404, 503, ""},
		v1.ReasonIdentityNotFound:        {404, 503, ""},
		v1.ReasonNotAssigned:             {404, 503, ""},
		v1.ReasonNotAttached:             {404, 503, ""},
		v1.ReasonSecretNotFound:          {404, 503, ""},
		v1.ReasonInvalidSecret:           {403, 403, ""},
		v1.ReasonSecretForbidden:         {403, 403, ""},
		v1.ReasonAuthorityForbidden:      {403, 403, ""},
		v1.ReasonUpstreamUpdating:        {410, 410, ""},
		v1.ReasonUpstreamThrottled:       {429, 429, "1"},
		v1.ReasonLimited:                 {429, 429, "1"},
		v1.ReasonUpstreamUnavailable:     {503, 503, "1"},
		v1.ReasonCallerAmbiguous:         {503, 503, "1"},
		v1.ReasonNotReady:                {503, 503, "5"},
		v1.ReasonStale:                   {503, 503, "5"},
		v1.ReasonInternalError:           {500, 500, ""},
	} {
		t.Run(string(reason), func(t *testing.T) {
			for compatible, status := range map[bool]int{false: want.status, true: want.compatible} {
				b := newBench(t, func(o *Options) {
					o.RetryAfter = compatible
					o.Agent = pods{func(imds.TokenRequest) (imds.Answer, error) {
						return imds.Answer{}, refusal.New(reason, "the message")
					}}
				})
				response, body := b.send(plainPod, get("/metadata/identity/oauth2/token?resource=r"))
				after := want.retryAfter
				if status == 503 && want.status == 404 {
					after = "20"
				}
				if response.StatusCode != status || response.Header.Get("Retry-After") != after {
					t.Errorf("compatible %v: got %s, Retry-After %q", compatible, response.Status, response.Header.Get("Retry-After"))
				}
				if code, description := errorOf(t, body); code == "" || !strings.Contains(description, "the message (reason "+string(reason)+")") {
					t.Errorf("body %s", body)
				}
			}
		})
	}
}

func TestUpstreamsRetryAfterIsPassedOn(t *testing.T) {
	b := newBench(t, func(o *Options) {
		o.Agent = pods{func(imds.TokenRequest) (imds.Answer, error) {
			return imds.Answer{}, &refusal.Error{Reason: v1.ReasonUpstreamThrottled, After: 6500 * time.Millisecond}
		}}
	})
	if response, _ := b.send(plainPod, get("/metadata/identity/oauth2/token?resource=r")); response.Header.Get("Retry-After") != "7" {
		t.Errorf("Retry-After %q, want the time rounded up", response.Header.Get("Retry-After"))
	}
}

func TestMistakesStayInside(t *testing.T) {
	for name, answer := range map[string]func(imds.TokenRequest) (imds.Answer, error){
		"an error": func(imds.TokenRequest) (imds.Answer, error) { return imds.Answer{}, errors.New("secret detail") },
		"a panic":  func(imds.TokenRequest) (imds.Answer, error) { panic("secret detail") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Agent = pods{answer} })
			response, body := b.send(plainPod, get("/metadata/identity/oauth2/token?resource=r"))
			if response.StatusCode != http.StatusInternalServerError || strings.Contains(body, "secret detail") {
				t.Errorf("%s: %s", response.Status, body)
			}
			if got := b.last(); got.Reason != v1.ReasonInternalError || got.Err == nil || !strings.Contains(got.Err.Error(), "secret detail") {
				t.Errorf("recorded %+v", got)
			}
		})
	}
}

func TestWhatIsForwardedIsTold(t *testing.T) {
	for name, test := range map[string]struct {
		from, request string
		away          bool
		want          []Forwarded
	}{
		"a token request that names nothing":    {exceptedPod, get("/metadata/identity/oauth2/token?resource=r"), false, []Forwarded{{Route: audit.RouteToken, Status: http.StatusTeapot}}},
		"one that names an identity":            {exceptedPod, get("/metadata/identity/oauth2/token?resource=r&mi_res_id=i"), false, []Forwarded{{Route: audit.RouteToken, Named: true, Status: http.StatusTeapot}}},
		"instance metadata":                     {plainPod, get("/metadata/instance"), false, []Forwarded{{Route: audit.RouteInstance, Status: http.StatusTeapot}}},
		"where the service is away":             {plainPod, get("/metadata/instance"), true, []Forwarded{{Route: audit.RouteInstance}}},
		"a token request that is not forwarded": {plainPod, get("/metadata/identity/oauth2/token?resource=r"), false, nil},
		"a path that nobody is served":          {exceptedPod, get("/metadata/identity/info"), false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []Forwarded
			b := newBench(t, func(o *Options) {
				o.Forwarded = func(f Forwarded) { got = append(got, f) }
				if test.away {
					o.Upstream = netip.MustParseAddrPort("127.0.0.1:1")
				}
			})
			b.send(test.from, test.request)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExceptionsReachTheServiceWithTheirOwnParameters(t *testing.T) {
	for name, test := range map[string]struct {
		from, request, path, query, method, body string
		listed                                   bool
		reason                                   v1.Reason
	}{
		"every parameter": {from: exceptedPod, request: get("/metadata/identity/oauth2/token?api-version=2019-08-01&resource=r%2F&msi_res_id=%2fa&object_id=o&x=1&x=2&bypass_cache=true"),
			path: "/metadata/identity/oauth2/token", query: "api-version=2019-08-01&resource=r%2F&msi_res_id=%2Fa&object_id=o&x=1&x=2&bypass_cache=true", method: "GET", reason: v1.ReasonException},
		"another path": {from: exceptedPod, request: get("/metadata/attested/document?nonce=1"),
			path: "/metadata/attested/document", query: "nonce=1", method: "GET", reason: v1.ReasonException},
		"with a body": {from: exceptedPod, request: "POST /metadata/scheduledevents HTTP/1.1\r\nHost: h\r\nMetadata: true\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody",
			path: "/metadata/scheduledevents", method: "POST", body: "body", reason: v1.ReasonException},
		"what is listed": {from: plainPod, request: get("/metadata/attested/document?api-version=2021-02-01"), listed: true,
			path: "/metadata/attested/document", query: "api-version=2021-02-01", method: "GET", reason: v1.ReasonForwarded},
		"instance metadata of any pod": {from: plainPod, request: get("/metadata/instance/compute?api-version=2021-02-01"),
			path: "/metadata/instance/compute", query: "api-version=2021-02-01", method: "GET", reason: v1.ReasonForwarded},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(o *Options) {
				if test.listed {
					o.Listed = Listable()
				}
			})
			response, body := b.send(test.from, test.request)
			if response.StatusCode != http.StatusTeapot || body != "from upstream" || response.Header.Get("X-Upstream") != "yes" {
				t.Fatalf("%s: %s", response.Status, body)
			}
			got := b.forwarded()[0]
			sent, err := io.ReadAll(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := []string{test.path, test.query, test.method, test.body, "true", ""}
			if diff := cmp.Diff(want, []string{got.URL.EscapedPath(), got.URL.RawQuery, got.Method, string(sent), got.Header.Get("Metadata"), got.Header.Get("X-Forwarded-For")}); diff != "" {
				t.Error(diff)
			}
			if record := b.last(); record.Reason != test.reason || record.Status != http.StatusTeapot {
				t.Errorf("recorded %+v", record)
			}
		})
	}
}

// answering is an upstream that sends these bytes to whoever connects.
func answering(t testing.TB, answer string) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			request, err := http.ReadRequest(bufio.NewReader(connection))
			if err == nil {
				_, _ = io.Copy(io.Discard, request.Body)
			}
			_, _ = io.WriteString(connection, answer) // who hangs up shows elsewhere
			_ = connection.Close()
		}
	}()
	return netip.MustParseAddrPort(listener.Addr().String())
}
