package simtest_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

func TestClientsReachNothingElse(t *testing.T) {
	sim := simtest.Start(t, azuresim.Config{})
	for _, url := range []string{"http://management.azure.com/", "http://169.254.169.253/metadata/instance", "http://127.0.0.1:1/", "http://169.254.169.254:81/"} {
		resp, err := sim.ClientFrom(t, netip.MustParseAddr("127.0.0.9")).Do(request(t, url))
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "reaches nothing else") {
			t.Errorf("%s: got %v", url, err)
		}
	}
	if n := len(sim.Journal.Since(0)); n != 0 {
		t.Errorf("the journal has %d entries", n)
	}
}

func TestClientsComeFromTheirAddress(t *testing.T) {
	sim := simtest.Start(t, azuresim.Config{})
	sim.ExpectUnexpected() // there is no node
	for i, source := range []string{"127.0.0.1", "127.0.0.9"} {
		client := sim.Client()
		if i > 0 {
			client = sim.ClientFrom(t, netip.MustParseAddr(source))
		}
		resp, err := client.Do(request(t, "http://169.254.169.254/metadata/instance"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := sim.Journal.Since(uint64(i))[0].Remote.String(); got != source {
			t.Errorf("got %s, want %s", got, source)
		}
	}
	if err := sim.ControlClient().Ready(t.Context()); err != nil {
		t.Error(err)
	}
	sim.Stop(t)
	if err := sim.ControlClient().Ready(t.Context()); err == nil {
		t.Error("a stopped simulator answers")
	}
}

func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}
