package azuresim_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// request sends one request through a client of the simulator and returns
// status and body. The body is closed.
func request(t *testing.T, client *http.Client, req *http.Request) (int, string) {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

func newRequest(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// imds asks node-0's IMDS for a token of a client ID, as curl would.
func imds(t *testing.T, a *azure, clientID string) (int, string) {
	t.Helper()
	req := newRequest(t, http.MethodGet, tokenURL+"&client_id="+clientID, "")
	req.Header.Set("Metadata", "true")
	return request(t, a.client(t), req)
}

const tokenURL = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
