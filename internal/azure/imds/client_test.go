package imds_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

func clientOf(t testing.TB, handler http.HandlerFunc) *imds.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	address, err := netip.ParseAddrPort(strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return imds.NewClient(imds.Options{Address: address, UserAgent: "agent/1", Now: func() time.Time { return now }})
}

func answer(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // a broken connection shows at the client
	}
}

func TestClientSendsWhatAnSDKSends(t *testing.T) {
	var got *http.Request
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(r.Context())
		answer(http.StatusOK, body)(w, r)
	})
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1") // must not be used
	token, err := client.Token(t.Context(), imds.Query{Resource: "https://vault.azure.net", ClientID: "C0FFEE"})
	if err != nil {
		t.Fatal(err)
	}
	if token.Value() != "header.payload.signature" || token.ClientID != "c0ffee" {
		t.Errorf("token for %q", token.ClientID)
	}
	want := url.Values{"api-version": {"2018-02-01"}, "client_id": {"C0FFEE"}, "resource": {"https://vault.azure.net"}}
	if diff := cmp.Diff(want, got.URL.Query()); diff != "" {
		t.Error(diff)
	}
	if _, err := client.Token(t.Context(), imds.Query{Resource: "https://vault.azure.net", ClientID: "C0FFEE", BypassCache: true}); err != nil {
		t.Fatal(err)
	}
	want.Set("bypass_cache", "true")
	if diff := cmp.Diff(want, got.URL.Query()); diff != "" {
		t.Error(diff)
	}
	if got.URL.Path != imds.TokenPath || got.Header.Get("Metadata") != "true" || got.Header.Get("User-Agent") != "agent/1" {
		t.Errorf("sent %s with %v", got.URL.Path, got.Header)
	}
}

// An identity without a client ID is asked for by its resource ID, and never as
// the machine's default.
func TestClientAsksByResourceID(t *testing.T) {
	id := parsedID(t, resourceID)
	for name, query := range map[string]imds.Query{
		"it has no other":     {Resource: "r", ResourceID: id},
		"the client ID first": {Resource: "r", ClientID: "c0ffee", ResourceID: id},
	} {
		t.Run(name, func(t *testing.T) {
			var got url.Values
			client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
				got = r.URL.Query()
				answer(http.StatusOK, body)(w, r)
			})
			token, err := client.Token(t.Context(), query)
			if err != nil || token.ClientID != "c0ffee" {
				t.Fatalf("token for %q, %v", token.ClientID, err)
			}
			want := url.Values{"api-version": {"2018-02-01"}, "resource": {"r"}, "msi_res_id": {id.String()}}
			if query.ClientID != "" {
				want = url.Values{"api-version": {"2018-02-01"}, "resource": {"r"}, "client_id": {"c0ffee"}}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestClientErrors(t *testing.T) {
	notFound := `{"error":"invalid_request","error_description":"Identity not found"}`
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"identity not found": {answer(400, notFound), &imds.RefusedError{Status: 400, Code: "invalid_request", Description: "Identity not found"}},
		"refused, no JSON":   {answer(403, "<html>"), &imds.RefusedError{Status: 403, Code: "unknown", Description: "the answer explains nothing"}},
		"throttled":          {answer(429, "", "Retry-After", "7"), &imds.ThrottledError{After: 7 * time.Second}},
		"throttled, silent":  {answer(429, "", "Retry-After", "soon"), &imds.ThrottledError{}},
		"throttled for ever": {answer(429, "", "Retry-After", "999999999"), &imds.ThrottledError{After: time.Hour}},
		"updating, 404":      {answer(404, ""), &imds.UpdatingError{Status: 404}},
		"updating, 410":      {answer(410, ""), &imds.UpdatingError{Status: 410}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := clientOf(t, test.handler).Token(t.Context(), imds.Query{Resource: "r", ClientID: "c"})
			if diff := cmp.Diff(test.want, err); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestClientDoesNotTakeForAToken(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"a server error":            answer(500, ""),
		"a redirect":                answer(302, body, "Location", "http://127.0.0.1:1/"),
		"a page of a captive proxy": answer(200, "<html>"),
		"another's token":           answer(200, strings.Replace(body, "c0ffee", "other", 1)),
		"an endless answer":         answer(200, strings.Repeat(" ", 2<<20)+body),
		"half an answer":            answer(200, body[:20], "Content-Length", "4000"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := clientOf(t, handler).Token(t.Context(), imds.Query{Resource: "r", ClientID: "c0ffee"})
			if _, ok := errors.AsType[*imds.UnavailableError](err); !ok {
				t.Fatalf("got %v, want an UnavailableError", err)
			}
		})
	}
}

func TestClientAsksForNoDefaultIdentity(t *testing.T) {
	client := clientOf(t, func(http.ResponseWriter, *http.Request) { t.Error("asked upstream") })
	var refused *imds.RefusedError
	if _, err := client.Token(t.Context(), imds.Query{Resource: "r"}); !errors.As(err, &refused) {
		t.Fatalf("got %v, want a RefusedError", err)
	}
}

func TestClientWithNobodyThere(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	address := netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://"))
	server.Close()
	_, err := imds.NewClient(imds.Options{Address: address}).Token(t.Context(), imds.Query{Resource: "r", ClientID: "c"})
	var unavailable *imds.UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Status != 0 {
		t.Fatalf("got %v, want an UnavailableError without a status", err)
	}
}
