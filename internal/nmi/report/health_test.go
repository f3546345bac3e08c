package report

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProbes(t *testing.T) {
	type answers struct{ Ready, Verbose, Health, HealthVerbose string }
	for name, test := range map[string]struct {
		change func(*Health)
		want   answers
	}{
		"all is well": {func(*Health) {}, answers{
			"200 ok",
			"200 [+]rules ok\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nreadyz check passed\n",
			"200 Active",
			"200 [+]rules ok\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nhealthz check passed\n",
		}},
		"the API server was never there": {func(h *Health) { h.Unsynced = func() []string { return []string{"pods", "azureidentities"} } }, answers{
			"503 [+]rules ok\n[-]caches failed: waiting for the API server to send azureidentities, pods\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"503 [+]rules ok\n[-]caches failed: waiting for the API server to send azureidentities, pods\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"200 Not Active",
			"200 [+]rules ok\n[-]caches failed: waiting for the API server to send azureidentities, pods\n[+]listener ok\n[+]shutdown ok\nhealthz check passed\n",
		}},
		"the API server is away for too long": {func(h *Health) { h.Stale = func() []string { return []string{"pods"} } }, answers{
			"503 [+]rules ok\n[-]caches failed: the API server has said nothing for longer than --max-cache-staleness of pods\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"503 [+]rules ok\n[-]caches failed: the API server has said nothing for longer than --max-cache-staleness of pods\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"200 Not Active",
			"200 [+]rules ok\n[-]caches failed: the API server has said nothing for longer than --max-cache-staleness of pods\n[+]listener ok\n[+]shutdown ok\nhealthz check passed\n",
		}},
		"the rules are not in place yet": {func(h *Health) { h.Kept.Store(false) }, answers{
			"503 [-]rules failed: not in place yet\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"503 [-]rules failed: not in place yet\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"200 Not Active",
			"200 [-]rules failed: not in place yet\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nhealthz check passed\n",
		}},
		"the rules are gone": {func(h *Health) {
			h.Rules = func(context.Context) error { return errors.Join(errors.New("one is gone"), errors.New("another, too")) }
		}, answers{
			"503 [-]rules failed: one is gone; another, too\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"503 [-]rules failed: one is gone; another, too\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nreadyz check failed\n",
			"503 Not Active: rules: one is gone\nanother, too",
			"503 [-]rules failed: one is gone; another, too\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\nhealthz check failed\n",
		}},
		"nobody listens, and it is ending": {func(h *Health) { h.Listening.Store(false); h.Stopping.Store(true) }, answers{
			"503 [+]rules ok\n[+]caches ok\n[-]listener failed: not open yet\n[-]shutdown failed: the agent is ending\nreadyz check failed\n",
			"503 [+]rules ok\n[+]caches ok\n[-]listener failed: not open yet\n[-]shutdown failed: the agent is ending\nreadyz check failed\n",
			"200 Not Active",
			"200 [+]rules ok\n[+]caches ok\n[-]listener failed: not open yet\n[-]shutdown failed: the agent is ending\nhealthz check passed\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Health{Rules: func(context.Context) error { return nil }, Unsynced: func() []string { return nil }, Stale: func() []string { return nil }}
			h.Kept.Store(true)
			h.Listening.Store(true)
			test.change(h)
			ask := func(target string) string {
				out := httptest.NewRecorder()
				h.Handler().ServeHTTP(out, httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil))
				return out.Result().Status[:3] + " " + out.Body.String()
			}
			got := answers{ask("/readyz"), ask("/readyz?verbose"), ask("/healthz"), ask("/healthz?verbose")}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if err := h.Ready(t.Context()); (err == nil) != (got.Ready == "200 ok") {
				t.Errorf("ready: %v", err)
			}
		})
	}
}
