package mic

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/pace"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
	"github.com/aad-pod-identity/aad-pod-identity/test/metricdoc"
)

func allMetrics(t *testing.T) (*metrics, *state) {
	t.Helper()
	m, s := newMetrics("v1.2.3"), &state{}
	m.watch(s, watchdog.New(clock.RealClock{}, nil))
	traffic := newARMTraffic(m.registry)
	traffic.sent(pace.Sent{Status: http.StatusOK})
	traffic.sent(pace.Sent{Wait: &throttle.NotBeforeError{}})
	m.registry.MustRegister(newBudgets(func() []throttle.Budget { return []throttle.Budget{{Scope: throttle.Resource, Class: throttle.Read}} }))
	newAttachmentMetrics(t.Context(), m.registry, noRecords{})
	return m, s
}

// noRecords is a cluster without a record.
type noRecords struct{ client.Reader }

func (noRecords) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func (m *metrics) families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

// TestMetricsDocument: the table of docs/metrics.md is what /metrics shows.
func TestMetricsDocument(t *testing.T) {
	m, _ := allMetrics(t)
	metricdoc.Compare(t, "MIC", m.handler(), "mic_", "aadpodidentity_")
}

// TestContractMetrics: names, labels, their values and buckets are those that
// dashboards know.
func TestContractMetrics(t *testing.T) {
	short := []float64{.01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1, 2, 3, 4, 5, 10}
	long := []float64{.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200}
	m, _ := allMetrics(t)
	families := m.families(t)
	for name, buckets := range map[string][]float64{
		"assigned_identity_addition_duration_seconds": short, "assigned_identity_deletion_duration_seconds": short, "assigned_identity_update_duration_seconds": short,
		"mic_cycle_duration_seconds": long, "cloud_provider_operations_duration_seconds": long,
	} {
		var got []float64
		for _, bucket := range families["aadpodidentity_"+name].GetMetric()[0].GetHistogram().GetBucket() {
			got = append(got, bucket.GetUpperBound())
		}
		if diff := cmp.Diff(buckets, got); diff != "" {
			t.Errorf("%s: buckets (-want +got):\n%s", name, diff)
		}
	}
	azure := []string{"vm_get", "vm_update", "vmss_get", "vmss_update"}
	for name, values := range map[string][]string{
		"cloud_provider_operations_duration_seconds": azure, "cloud_provider_operations_errors_count": azure,
		"kubernetes_api_operations_errors_count": {"assigned_identity_addition", "assigned_identity_deletion", "assigned_identity_update", "update_azure_assigned_identity_status"},
		"assigned_identity_addition_count":       {""}, "assigned_identity_deletion_count": {""}, "assigned_identity_update_count": {""},
		"mic_cycle_count": {""}, "mic_new_leader_election_count": {""},
	} {
		var got []string
		for _, series := range families["aadpodidentity_"+name].GetMetric() {
			value := ""
			for _, pair := range series.GetLabel() {
				if pair.GetName() != "operation_type" {
					t.Errorf("%s has a label %s", name, pair.GetName())
				}
				value = pair.GetValue()
			}
			got = append(got, value)
		}
		slices.Sort(got)
		if diff := cmp.Diff(values, got); diff != "" {
			t.Errorf("%s: series (-want +got):\n%s", name, diff)
		}
	}
}

// TestNewMetricsNames: those without a contract have names as Prometheus's linter
// wants them.
func TestNewMetricsNames(t *testing.T) {
	m, _ := allMetrics(t)
	var own []string
	for name := range m.families(t) {
		if strings.HasPrefix(name, "mic_") {
			own = append(own, name)
		}
	}
	problems, err := testutil.GatherAndLint(m.registry, own...)
	if err != nil || len(own) < 6 || len(problems) > 0 {
		t.Errorf("%v: %v, %v", own, problems, err)
	}
}

// TestMetricsValues: each event is counted where the documents say.
func TestMetricsValues(t *testing.T) {
	m, s := allMetrics(t)
	failure := errors.New("no")
	m.write("addition", time.Second, nil)
	m.write("deletion", time.Second, failure)
	m.statusFailed()
	m.ended("attachment", time.Minute)
	m.ended("assignment", time.Minute)
	m.arm(armclient.Ended{Kind: compute.VirtualMachine, Operation: "get", Took: time.Second})
	m.arm(armclient.Ended{Kind: compute.ScaleSet, Operation: "update", Took: time.Second, Err: failure})
	m.reloaded(failure)
	s.leader.Store(true)
	want := `
# HELP aadpodidentity_assigned_identity_addition_count AzureAssignedIdentities written.
# TYPE aadpodidentity_assigned_identity_addition_count counter
aadpodidentity_assigned_identity_addition_count 1
# HELP aadpodidentity_cloud_provider_operations_errors_count Requests to ARM that failed.
# TYPE aadpodidentity_cloud_provider_operations_errors_count counter
aadpodidentity_cloud_provider_operations_errors_count{operation_type="vm_get"} 0
aadpodidentity_cloud_provider_operations_errors_count{operation_type="vm_update"} 0
aadpodidentity_cloud_provider_operations_errors_count{operation_type="vmss_get"} 0
aadpodidentity_cloud_provider_operations_errors_count{operation_type="vmss_update"} 1
# HELP aadpodidentity_kubernetes_api_operations_errors_count Writes to the API server that failed.
# TYPE aadpodidentity_kubernetes_api_operations_errors_count counter
aadpodidentity_kubernetes_api_operations_errors_count{operation_type="assigned_identity_addition"} 0
aadpodidentity_kubernetes_api_operations_errors_count{operation_type="assigned_identity_deletion"} 1
aadpodidentity_kubernetes_api_operations_errors_count{operation_type="assigned_identity_update"} 0
aadpodidentity_kubernetes_api_operations_errors_count{operation_type="update_azure_assigned_identity_status"} 1
# HELP aadpodidentity_mic_cycle_count Reconciliations of a virtual machine or scale set.
# TYPE aadpodidentity_mic_cycle_count counter
aadpodidentity_mic_cycle_count 1
# HELP mic_cloud_config_current 1 if what the files of the cloud configuration say is in use, 0 if it was refused.
# TYPE mic_cloud_config_current gauge
mic_cloud_config_current 0
# HELP mic_leader 1 if this replica leads.
# TYPE mic_leader gauge
mic_leader 1
`
	names := []string{
		"aadpodidentity_assigned_identity_addition_count", "aadpodidentity_cloud_provider_operations_errors_count", "aadpodidentity_kubernetes_api_operations_errors_count",
		"aadpodidentity_mic_cycle_count", "mic_cloud_config_current", "mic_leader",
	}
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	m.reloaded(nil)
	if got := m.families(t)["mic_cloud_config_current"].GetMetric()[0].GetGauge().GetValue(); got != 1 {
		t.Errorf("mic_cloud_config_current is %v after a good one", got)
	}
}

// TestHealth: a worker that hangs fails liveness, whoever leads; caches that are
// not filled fail readiness alone.
func TestHealth(t *testing.T) {
	s := &state{stuck: func() error { return nil }}
	probe := func(path string) (int, string) {
		recorder := httptest.NewRecorder()
		s.handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
		return recorder.Code, strings.TrimSpace(recorder.Body.String())
	}
	check := func(path string, status int, body string) {
		t.Helper()
		if gotStatus, gotBody := probe(path); gotStatus != status || gotBody != body {
			t.Errorf("%s: %d %q, want %d %q", path, gotStatus, gotBody, status, body)
		}
	}
	check("/healthz", http.StatusOK, "Not Active")
	check("/readyz", http.StatusServiceUnavailable, "the caches are not filled yet")
	s.leader.Store(true)
	s.ready.Store(true)
	check("/healthz", http.StatusOK, "Active")
	check("/readyz", http.StatusOK, "ok")
	s.stuck = func() error { return errors.New("stuck: x") }
	check("/healthz", http.StatusServiceUnavailable, "stuck: x")
	check("/readyz", http.StatusOK, "ok")
	if status, _ := probe("/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("pprof on the probe port: %d", status)
	}
}
