package e2e_test

import (
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// TestCallersAreProven: each node's NMI knows its pods by their links, and tried
// its redirect by a packet of its own.
func TestCallersAreProven(t *testing.T) {
	for _, node := range shared.Nodes {
		t.Run(string(node.Layout), func(t *testing.T) {
			noLeak(t, node)
			identity := newIdentity(t, "")
			bind(t, name(t), identity, name(t))
			pod := runPod(t, node, name(t), name(t))
			token, err := sdkToken(t, pod, nil)
			if err != nil {
				t.Fatal(err)
			}
			wantToken(t, pod, token, identity)
			proof := map[world.Layout]string{world.Bridge: "bridge-port", world.PointToPoint: "link"}[node.Layout]
			text := scrape(t, node)
			if value(t, text, `nmi_caller_addresses{proof="`+proof+`"}`) == 0 || value(t, text, `nmi_caller_addresses{proof="ip-only"}`) > 0 {
				t.Errorf("pods are not known by %s", proof)
			}
			if value(t, text, `nmi_redirect_probes_total{result="answered"}`) == 0 {
				t.Error("no packet of its own came back")
			}
		})
	}
}

// scrape returns the metrics of a node's NMI.
func scrape(t *testing.T, node *world.Node) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: node.NS.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:9090/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// value returns that of a series.
func value(t *testing.T, metrics, series string) float64 {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(metrics)
	if found == nil {
		t.Fatalf("the metrics have no %s", series)
	}
	out, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
