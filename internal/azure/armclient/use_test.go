package armclient_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

// TestUse: another configuration takes effect with the next request, and one
// that cannot be used takes none.
func TestUse(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	right := armclient.Config{Cloud: "AzureCloud", TenantID: tenant, ClientID: appClientID, ClientSecret: secret}
	wrong := right
	wrong.ClientSecret = "wrong"
	client := newClient(t, wrong, armclient.Options{Transport: a})
	get := func() string {
		_, err := client.Get(t.Context(), ref(t, setID))
		return kind(err)
	}
	if got := get(); got != "unavailable" {
		t.Errorf("with a wrong secret: %q", got)
	}
	if err := client.Use(right); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != kind(nil) {
		t.Errorf("with the right one: %q", got)
	}
	for words, bad := range map[string]armclient.Config{
		"is unknown": {Cloud: "nowhere"},
		"credential": {Cloud: "AzureCloud", TenantID: "not a tenant", ClientID: "c", ClientSecret: "s"},
	} {
		if err := client.Use(bad); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want words %q", err, words)
		}
		if got := get(); got != kind(nil) {
			t.Errorf("after a bad one: %q", got)
		}
	}
}

// TestUseMeanwhile is for the race detector.
func TestUseMeanwhile(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	config := armclient.Config{Cloud: "AzureCloud", TenantID: tenant, ClientID: appClientID, ClientSecret: secret}
	client := newClient(t, config, armclient.Options{Transport: a})
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for range 5 {
				if _, err := client.Get(t.Context(), ref(t, setID)); err != nil {
					t.Error(err)
				}
			}
		})
		running.Go(func() {
			for range 5 {
				if err := client.Use(config); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
}
