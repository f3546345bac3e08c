package report

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/test/metricdoc"
)

func TestAWarningIsNotRepeatedForAWhile(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	recorder := record.NewFakeRecorder(100)
	events := &Events{recorder: recorder, now: func() time.Time { return now }, last: map[warning]time.Time{}}
	pod := identity.Key{Namespace: "ns", Name: "pod"}
	for _, step := range []struct {
		name   string
		do     func()
		events int
	}{
		{"the first", func() { events.Warn(pod, "1", v1.ReasonNotBound, "m") }, 1},
		{"the same at once", func() { events.Warn(pod, "1", v1.ReasonNotBound, "m") }, 0},
		{"another message", func() { events.Warn(pod, "1", v1.ReasonNotBound, "n") }, 1},
		{"another reason", func() { events.Warn(pod, "1", v1.ReasonNoBinding, "m") }, 1},
		{"a pod of the same name", func() { events.Warn(pod, "2", v1.ReasonNotBound, "m") }, 1},
		{"the same much later", func() { now = now.Add(repeatAfter); events.Warn(pod, "1", v1.ReasonNotBound, "m") }, 1},
	} {
		step.do()
		if got := len(recorder.Events); got != step.events {
			t.Errorf("%s: %d events, want %d", step.name, got, step.events)
		}
		for range len(recorder.Events) {
			<-recorder.Events
		}
	}
}

func TestWarningsAreBounded(t *testing.T) {
	events := &Events{recorder: record.NewFakeRecorder(3 * maxWarnings), now: time.Now, last: map[warning]time.Time{}}
	for i := range 2 * maxWarnings {
		events.Warn(identity.Key{}, types.UID(fmt.Sprint(i)), v1.ReasonNotBound, "m")
	}
	if got := len(events.last); got > maxWarnings {
		t.Errorf("%d warnings are remembered", got)
	}
}

func scrape(m *Metrics) string {
	out := httptest.NewRecorder()
	m.Handler().ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return out.Body.String()
}

func TestCallersDoNotChooseLabels(t *testing.T) {
	m := NewMetrics("v1.2.3")
	for i := range 1000 {
		m.Decided(&audit.Record{Route: audit.RouteToken, Resource: fmt.Sprint("refused-", i), Reason: v1.ReasonUpstreamRefused, Status: 400})
		m.Decided(&audit.Record{Route: audit.RouteToken, Resource: fmt.Sprint("issued-", i), Reason: v1.ReasonIssued, Status: 200})
		m.Decided(&audit.Record{Route: audit.RouteOther, Resource: "x", Reason: v1.ReasonNotServed, Status: 404})
	}
	text := scrape(m)
	if got := strings.Count(text, "aadpodidentity_nmi_operations_duration_seconds_count{"); got != maxResources+2 {
		t.Errorf("%d series, want %d and two of others", got, maxResources)
	}
	if strings.Contains(text, "refused-") {
		t.Error("a refused resource became a label")
	}
	if !strings.Contains(text, `nmi_decisions_total{reason="NotServed",route="other"} 1000`) {
		t.Error("decisions are not counted")
	}
}

// The contract's series, by the names and values that its dashboards know.
func TestTheContractsMetrics(t *testing.T) {
	m := NewMetrics("v1.2.3")
	m.Decided(&audit.Record{Route: audit.RouteToken, Pod: identity.Key{Namespace: "ns", Name: "p"}, Resource: "r", Reason: v1.ReasonIssued, Status: 200})
	m.Decided(&audit.Record{Route: audit.RouteHost, Pod: identity.Key{Namespace: "ns", Name: "p"}, Resource: "r", Reason: v1.ReasonIssued, Status: 200})
	m.Decided(&audit.Record{Route: audit.RouteToken, Reason: v1.ReasonCallerUnknown, Status: 404})
	m.Decided(&audit.Record{Route: audit.RouteInstance, Reason: v1.ReasonForwarded, Status: 200})
	m.AskedIMDS("ok", time.Second)
	m.AskedIMDS("refused", time.Second)
	m.AskedEntra("ok", time.Second)
	m.AskedEntra("forbidden", time.Second)
	m.APIFailed("get_secret")
	text := scrape(m)
	for _, line := range []string{
		`aadpodidentity_nmi_operations_duration_seconds_count{namespace="ns",operation_type="/metadata/identity/oauth2/token",resource="r",status_code="200"} 1`,
		`aadpodidentity_nmi_operations_duration_seconds_count{namespace="ns",operation_type="/host/token",resource="r",status_code="200"} 1`,
		`aadpodidentity_nmi_operations_duration_seconds_count{namespace="",operation_type="/metadata/identity/oauth2/token",resource="",status_code="404"} 1`,
		`aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token_msi_userassignedid"} 1`,
		`aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token"} 1`,
		`aadpodidentity_imds_operations_errors_count{operation_type="adal_token_msi_userassignedid"} 1`,
		`aadpodidentity_imds_operations_errors_count{operation_type="adal_token"} 1`,
		`aadpodidentity_kubernetes_api_operations_errors_count{operation_type="get_secret"} 1`,
		`aadpodidentity_kubernetes_api_operations_errors_count{operation_type="get_pod_list"} 1`,
		`nmi_upstream_duration_seconds_count{code="ok",upstream="entra"} 1`,
		`nmi_decisions_total{reason="Forwarded",route="instance"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("metrics lack %s", line)
		}
	}
	for name, buckets := range map[string]int{"aadpodidentity_nmi_operations_duration_seconds": 18 * 3, "aadpodidentity_imds_operations_duration_seconds": 18 * 2} {
		if got := strings.Count(text, name+"_bucket{") - strings.Count(text, name+`_bucket{le="+Inf"`); got < buckets {
			t.Errorf("%s has %d buckets", name, got)
		}
	}
}

// all are the agent's metrics, each with a series.
func all() *Metrics {
	m := NewMetrics("v1.2.3")
	m.Decided(&audit.Record{Route: audit.RouteToken, Reason: v1.ReasonIssued, Status: 200})
	m.AskedIMDS("refused", time.Second)
	m.AskedIMDS("ok", time.Second)
	m.APIFailed("get_secret")
	m.Cached("hit")
	m.Limited("pod_rate")
	m.Waiting("entra", func() int { return 1 })
	m.Callers("link", func() int { return 1 })
	m.Lost()("moved")
	m.Probed()("answered")
	m.WatchAges(func() map[string]time.Duration { return map[string]time.Duration{"pods": time.Minute} })
	return m
}

func TestMetricsDocument(t *testing.T) {
	metricdoc.Compare(t, "NMI", all().Handler(), "nmi_", "aadpodidentity_")
}

func TestHowLongTheAPIServerHasSaidNothingIsShown(t *testing.T) {
	if text := scrape(all()); !strings.Contains(text, `nmi_watch_age_seconds{kind="pods"} 60`+"\n") {
		t.Errorf("got %s", text)
	}
}

func TestForwardedRequestsAreCounted(t *testing.T) {
	for name, test := range map[string]struct {
		route  audit.Route
		named  bool
		status int
		want   []string
	}{
		"a token of the node's own": {audit.RouteToken, false, 200, []string{`aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token_msi"} 1`, `nmi_upstream_duration_seconds_count{code="ok",upstream="imds"} 1`}},
		"a token of an identity":    {audit.RouteToken, true, 200, []string{`aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token_msi_userassignedid"} 1`}},
		"a token that is refused":   {audit.RouteToken, false, 400, []string{`aadpodidentity_imds_operations_errors_count{operation_type="adal_token_msi"} 1`, `nmi_upstream_duration_seconds_count{code="refused",upstream="imds"} 1`}},
		"no answer":                 {audit.RouteToken, true, 0, []string{`aadpodidentity_imds_operations_errors_count{operation_type="adal_token_msi_userassignedid"} 1`, `nmi_upstream_duration_seconds_count{code="unavailable",upstream="imds"} 1`}},
		"too many":                  {audit.RouteToken, true, 429, []string{`nmi_upstream_duration_seconds_count{code="throttled",upstream="imds"} 1`}},
		"an update":                 {audit.RouteToken, true, 410, []string{`nmi_upstream_duration_seconds_count{code="updating",upstream="imds"} 1`}},
		"a mistake of the service":  {audit.RouteToken, true, 500, []string{`nmi_upstream_duration_seconds_count{code="unavailable",upstream="imds"} 1`}},
		"instance metadata":         {audit.RouteInstance, false, 200, []string{`nmi_upstream_duration_seconds_count{code="ok",upstream="imds_metadata"} 1`}},
		"other metadata, not there": {audit.RouteOther, false, 404, []string{`nmi_upstream_duration_seconds_count{code="refused",upstream="imds_metadata"} 1`}},
		"other metadata, too slow":  {audit.RouteOther, false, 408, []string{`nmi_upstream_duration_seconds_count{code="unavailable",upstream="imds_metadata"} 1`}},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMetrics("v1.2.3")
			m.Forwarded(test.route, test.named, test.status, time.Second)
			text := scrape(m)
			for _, line := range test.want {
				if !strings.Contains(text, line+"\n") {
					t.Errorf("metrics lack %s", line)
				}
			}
			if test.route != audit.RouteToken && strings.Contains(text, "aadpodidentity_imds") {
				t.Error("what is no token counts as one")
			}
		})
	}
}
