package azuresim_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

// All surfaces at once, for the race detector; no request may be lost.
func TestSurfacesServeConcurrently(t *testing.T) {
	const callers, rounds = 8, 10
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID}
	a := start(t, azuresim.Config{State: doc})
	bearer := good(t, a)
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for range rounds {
				if status, body := imds(t, a, demoClientID); status != http.StatusOK {
					t.Errorf("IMDS: %d %s", status, body)
				}
				for method, body := range map[string]string{
					http.MethodGet:   "",
					http.MethodPatch: `{"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + demoID + `":{},"` + otherID + `":{}}}}`,
				} {
					req := newRequest(t, method, armURL+scaleSetID+version, body)
					req.Header.Set("Authorization", "Bearer "+bearer)
					if status, body := request(t, a.Client(), req); status != http.StatusOK && status != http.StatusConflict {
						t.Errorf("%s: %d %s", method, status, body)
					}
				}
				if _, err := a.ControlClient().State(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	entries := a.Journal.Since(0)
	if len(entries) != callers*rounds*3 {
		t.Errorf("the journal has %d entries, want %d", len(entries), callers*rounds*3)
	}
	for i, e := range entries {
		if e.Seq != uint64(i+1) {
			t.Fatalf("entry %d has the number %d", i, e.Seq)
		}
	}
}

// A test may mount a surface wherever it likes.
func TestHandlersCanBeMountedAlone(t *testing.T) {
	sim, err := azuresim.New(azuresim.Config{State: document()})
	if err != nil {
		t.Fatal(err)
	}
	a := &azure{Sim: &simtest.Sim{Simulator: sim}}
	for name, test := range map[string]struct {
		handler http.Handler
		path    string
		bearer  string
		status  int
	}{
		journal.ARM:      {sim.ARM(), scaleSetID + version, good(t, a), http.StatusOK},
		journal.Entra:    {sim.Entra(), "/" + tenant + "/discovery/v2.0/keys", "", http.StatusOK},
		journal.IMDS:     {sim.IMDS(), "/metadata/identity/oauth2/token", "", http.StatusBadRequest},
		journal.KeyVault: {sim.KeyVault(), "/secrets/greeting?api-version=7.4", "", http.StatusUnauthorized},
		journal.Storage:  {sim.Storage(), "/greetings" + listQuery, mint(t, a, tenant, "https://storage.azure.com"), http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.handler)
			defer server.Close()
			req := newRequest(t, http.MethodGet, server.URL+test.path, "")
			req.Header.Set("Authorization", "Bearer "+test.bearer)
			switch name {
			case journal.KeyVault:
				req.Host = "demo-vault.vault.azure.net"
			case journal.Storage:
				req.Host = "demoaccount.blob.core.windows.net"
				req.Header.Set("x-ms-version", "2026-06-06")
			}
			if status, body := request(t, server.Client(), req); status != test.status {
				t.Errorf("got %d %s, want %d", status, body, test.status)
			}
		})
	}
	if unexpected := sim.Journal.Unexpected(); len(unexpected) > 0 {
		t.Errorf("unexpected: %v", unexpected)
	}
}
