package nmi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
)

// testKubenet: where pods share a segment without proof, they are refused and the
// agent is unready for a reason, unless the flag allows it.
func testKubenet(t *testing.T, c *cluster) {
	ns := c.namespace("kubenet")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "app"))
	c.pod(ns, "pod", "app", "127.0.30.1")
	file := filepath.Join(t.TempDir(), "kubelet")
	if err := os.WriteFile(file, []byte(`KUBELET_FLAGS="--v=2 --network-plugin=kubenet"`), 0o600); err != nil {
		t.Fatal(err)
	}
	for flags, want := range map[string]struct {
		status, ready int
		words         string
	}{
		"--kubelet-config=" + file:                                     {403, 503, "CallerUnproven"},
		"--kubelet-config=" + file + " --allow-network-plugin-kubenet": {200, 200, "access_token"},
		"--kubelet-config=" + file + ".missing":                        {200, 200, "access_token"},
	} {
		r := start(t, c.config, upstream, append(strings.Fields(flags), "--operation-mode=managed")...).ready()
		if got := r.get("127.0.30.1", tokenPath+"?resource="+resource); got.status != want.status || !strings.Contains(got.body, want.words) {
			t.Errorf("%s: %d %s", flags, got.status, got.body)
		}
		if got := probe(t, r.probes, "/readyz"); got.status != want.ready || (want.ready == 503) != strings.Contains(got.body, "--allow-network-plugin-kubenet") {
			t.Errorf("%s: /readyz %d %s", flags, got.status, got.body)
		}
		if got := probe(t, r.metrics, "/metrics"); !strings.Contains(got.body, `nmi_caller_addresses{proof="ip-only"} `) {
			t.Errorf("%s: the proof is not among the metrics", flags)
		}
	}
}

// testProbe: the agent is unready while its own packet does not come back, also
// when it once did.
func testProbe(t *testing.T, c *cluster) {
	_, upstream := azure(t)
	r := start(t, c.config, upstream, "--operation-mode=managed", "--redirect-probe-interval=1s").ready()
	for _, step := range []struct {
		leads  error
		status int
		words  string
	}{
		{nil, 200, "[+]probe ok"},
		{selfprobe.ErrSilent, 503, "nothing answers"},
		{selfprobe.ErrRefused, 503, "refused"},
		{nil, 200, "[+]probe ok"},
	} {
		r.redirect.leads.Store(&step.leads)
		var got reaction
		for range 200 { // the next try is a second away, and says nothing
			if got = probe(t, r.probes, "/readyz?verbose"); got.status == step.status && strings.Contains(got.body, step.words) {
				break
			}
			<-time.After(20 * time.Millisecond)
		}
		if got.status != step.status || !strings.Contains(got.body, step.words) {
			t.Errorf("with %v: /readyz %d %s", step.leads, got.status, got.body)
		}
	}
	// A restart would not help, and would take what is served away.
	r.redirect.leads.Store(new(errors.New("down")))
	if got := probe(t, r.probes, "/healthz"); got.status != 200 {
		t.Errorf("/healthz: %d %s", got.status, got.body)
	}
	for _, line := range []string{`nmi_redirect_probes_total{result="answered"} `, `nmi_redirect_probes_total{result="failed"} `} {
		if got := probe(t, r.metrics, "/metrics"); !strings.Contains(got.body, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
}
