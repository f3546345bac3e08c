package mic

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

// metrics are the controller's own. The names without the prefix mic_ are those
// of the old system's dashboards; labels have a handful of values each.
type metrics struct {
	registry *prometheus.Registry

	writes      map[string]prometheus.Histogram // by operation
	writeCounts map[string]prometheus.Counter   // by operation
	writeErrors *prometheus.CounterVec
	armSeconds  *prometheus.HistogramVec
	armErrors   *prometheus.CounterVec
	elections   prometheus.Counter
}

const (
	legacyPrefix = "aadpodidentity_"
	labelOp      = "operation_type"
)

// longBuckets are the old system's for what Azure does.
func longBuckets() []float64 { return []float64{.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200} }

func newMetrics() *metrics {
	shortBuckets := []float64{.01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1, 2, 3, 4, 5, 10}
	m := &metrics{
		registry: prometheus.NewRegistry(), writes: map[string]prometheus.Histogram{}, writeCounts: map[string]prometheus.Counter{},
		writeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: legacyPrefix + "kubernetes_api_operations_errors_count", Help: "Writes to the API server that failed."}, []string{labelOp}),
		armSeconds:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: legacyPrefix + "cloud_provider_operations_duration_seconds", Help: "How long requests to ARM took, to the operation's end.", Buckets: longBuckets()}, []string{labelOp}),
		armErrors:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: legacyPrefix + "cloud_provider_operations_errors_count", Help: "Requests to ARM that failed."}, []string{labelOp}),
		elections:   prometheus.NewCounter(prometheus.CounterOpts{Name: legacyPrefix + "mic_new_leader_election_count", Help: "How often this replica became the leader."}),
	}
	m.registry.MustRegister(m.writeErrors, m.armSeconds, m.armErrors, m.elections)
	for _, operation := range []string{"addition", "update", "deletion"} {
		name := legacyPrefix + "assigned_identity_" + operation
		m.writes[operation] = prometheus.NewHistogram(prometheus.HistogramOpts{Name: name + "_duration_seconds", Help: "How long writing an AzureAssignedIdentity took.", Buckets: shortBuckets})
		m.writeCounts[operation] = prometheus.NewCounter(prometheus.CounterOpts{Name: name + "_count", Help: "AzureAssignedIdentities written."})
		m.registry.MustRegister(m.writes[operation], m.writeCounts[operation])
	}
	return m
}

func (m *metrics) write(operation string, took time.Duration, err error) {
	if err != nil {
		m.writeErrors.WithLabelValues("assigned_identity_" + operation).Inc()
		return
	}
	m.writes[operation].Observe(took.Seconds())
	m.writeCounts[operation].Inc()
}

func (m *metrics) arm(r armclient.Ended) {
	operation := "vmss_" + r.Operation
	if r.Kind == compute.VirtualMachine {
		operation = "vm_" + r.Operation
	}
	m.armSeconds.WithLabelValues(operation).Observe(r.Took.Seconds())
	if r.Err != nil {
		m.armErrors.WithLabelValues(operation).Inc()
	}
}
