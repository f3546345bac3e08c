package world_test

import (
	"context"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// TestWorldWithoutAgent shows that the danger is real: while no NMI runs, a pod
// reaches its node's own metadata service.
func TestWorldWithoutAgent(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w, err := world.New(ctx, world.Options{Programs: filepath.Join(env.Root(), "bin"), Kubernetes: env.Assets(), Dir: t.TempDir(), ARMLatency: time.Second, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, node := range w.Nodes {
		pod, err := node.Run(ctx, world.NewPod("default", "p-"+node.Name, nil))
		if err != nil {
			t.Fatal(err)
		}
		transport, err := w.Transport(ctx, pod.NS)
		if err != nil {
			t.Fatal(err)
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Metadata", "true")
		response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s pod of %s: %s", node.Layout, node.Name, response.Status)
		}
	}
}
