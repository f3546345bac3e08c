// Package metricdoc compares docs/metrics.md with what the programs show.
//
// It must not know any metric: names, types and labels come from the page and
// from the registries.
package metricdoc

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Compare fails the test unless the tables below the page's heading, as "MIC", are
// what the handler shows of the metrics whose names begin with a prefix. A metric
// that has no series yet is not shown: whoever calls gives each one.
func Compare(t *testing.T, heading string, metrics http.Handler, prefixes ...string) {
	t.Helper()
	if diff := cmp.Diff(shown(t, metrics, prefixes), documented(t, heading)); diff != "" {
		t.Errorf("docs/metrics.md, %s (-shown +documented):\n%s", heading, diff)
	}
}

// documented returns type and labels by the metric's name.
func documented(t *testing.T, heading string) map[string]string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(here), "..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("docs/metrics.md has no heading %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	out := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\|([^|]*)\\|").FindAllStringSubmatch(section, -1) {
		out[row[1]] = row[2] + " " + strings.NewReplacer("`", "", ", ", ",").Replace(strings.TrimSpace(row[3]))
	}
	return out
}

// shown returns the same of what a scrape says.
func shown(t *testing.T, metrics http.Handler, prefixes []string) map[string]string {
	t.Helper()
	answer := httptest.NewRecorder()
	metrics.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name, family := range families {
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		var labels []string
		for _, pair := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, pair.GetName())
		}
		slices.Sort(labels)
		out[name] = strings.ToLower(family.GetType().String()) + " " + strings.Join(labels, ",")
	}
	return out
}
