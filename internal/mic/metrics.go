package mic

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// metrics are the controller's own. The names without the prefix mic_ are those
// of the old system's dashboards; labels have a handful of values each, and every
// series is there from the start. docs/metrics.md lists them.
type metrics struct {
	registry *prometheus.Registry

	writes       map[string]prometheus.Histogram // by operation
	writeCounts  map[string]prometheus.Counter   // by operation
	writeErrors  *prometheus.CounterVec
	cycleSeconds prometheus.Histogram
	cycles       prometheus.Counter
	armSeconds   *prometheus.HistogramVec
	armErrors    *prometheus.CounterVec
	elections    prometheus.Counter
	reloads      *prometheus.CounterVec
	current      prometheus.Gauge
}

const (
	legacyPrefix = "aadpodidentity_"
	labelOp      = "operation_type"
	labelResult  = "result"

	writePrefix  = "assigned_identity_"
	statusUpdate = "update_azure_assigned_identity_status"
)

// longBuckets are the old system's for what Azure does.
func longBuckets() []float64 { return []float64{.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200} }

func newMetrics(version string) *metrics {
	shortBuckets := []float64{.01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1, 2, 3, 4, 5, 10}
	m := &metrics{
		registry: prometheus.NewRegistry(), writes: map[string]prometheus.Histogram{}, writeCounts: map[string]prometheus.Counter{},
		writeErrors:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: legacyPrefix + "kubernetes_api_operations_errors_count", Help: "Writes to the API server that failed."}, []string{labelOp}),
		cycleSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: legacyPrefix + "mic_cycle_duration_seconds", Help: "How long one reconciliation of a virtual machine or scale set took, Azure's part included.", Buckets: longBuckets()}),
		cycles:       prometheus.NewCounter(prometheus.CounterOpts{Name: legacyPrefix + "mic_cycle_count", Help: "Reconciliations of a virtual machine or scale set."}),
		armSeconds:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: legacyPrefix + "cloud_provider_operations_duration_seconds", Help: "How long requests to ARM took, to the operation's end.", Buckets: longBuckets()}, []string{labelOp}),
		armErrors:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: legacyPrefix + "cloud_provider_operations_errors_count", Help: "Requests to ARM that failed."}, []string{labelOp}),
		elections:    prometheus.NewCounter(prometheus.CounterOpts{Name: legacyPrefix + "mic_new_leader_election_count", Help: "How often this replica became the leader."}),
		reloads:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mic_cloud_config_reloads_total", Help: "Replaced cloud configurations, by what became of them: used or refused."}, []string{labelResult}),
		current:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "mic_cloud_config_current", Help: "1 if what the files of the cloud configuration say is in use, 0 if it was refused."}),
	}
	m.registry.MustRegister(m.writeErrors, m.cycleSeconds, m.cycles, m.armSeconds, m.armErrors, m.elections, m.reloads, m.current)
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mic_build_info", Help: "Always 1; the label is the version.", ConstLabels: prometheus.Labels{"version": version}}, func() float64 { return 1 }))
	for _, operation := range []string{"addition", "update", "deletion"} {
		name := legacyPrefix + writePrefix + operation
		m.writes[operation] = prometheus.NewHistogram(prometheus.HistogramOpts{Name: name + "_duration_seconds", Help: "How long writing an AzureAssignedIdentity took.", Buckets: shortBuckets})
		m.writeCounts[operation] = prometheus.NewCounter(prometheus.CounterOpts{Name: name + "_count", Help: "AzureAssignedIdentities written."})
		m.registry.MustRegister(m.writes[operation], m.writeCounts[operation])
		m.writeErrors.WithLabelValues(writePrefix + operation)
	}
	m.begin()
	return m
}

// begin makes every series, so that a rate has a beginning.
func (m *metrics) begin() {
	m.writeErrors.WithLabelValues(statusUpdate)
	for _, operation := range []string{"vm_get", "vm_update", "vmss_get", "vmss_update"} {
		m.armSeconds.WithLabelValues(operation)
		m.armErrors.WithLabelValues(operation)
	}
	m.reloads.WithLabelValues("used")
	m.reloads.WithLabelValues("refused")
	m.current.Set(1)
}

// watch adds what is asked for when it is read.
func (m *metrics) watch(s *state, dog *watchdog.Watchdog) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mic_leader", Help: "1 if this replica leads."}, func() float64 {
			if s.leader.Load() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mic_longest_reconcile_seconds", Help: "For how long the oldest reconciliation under way runs."}, func() float64 { return dog.Longest().Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mic_stuck_reconciles", Help: "Reconciliations that hang; /healthz fails if there are any."}, func() float64 { return float64(len(dog.Stuck())) }),
	)
}

func (m *metrics) write(operation string, took time.Duration, err error) {
	if err != nil {
		m.writeErrors.WithLabelValues(writePrefix + operation).Inc()
		return
	}
	m.writes[operation].Observe(took.Seconds())
	m.writeCounts[operation].Inc()
}

func (m *metrics) statusFailed() { m.writeErrors.WithLabelValues(statusUpdate).Inc() }

// ended counts the old system's cycles: what its one loop did for all at once is
// now done for one resource at a time.
func (m *metrics) ended(worker string, took time.Duration) {
	if worker == "attachment" {
		m.cycles.Inc()
		m.cycleSeconds.Observe(took.Seconds())
	}
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

func (m *metrics) reloaded(err error) {
	if err != nil {
		m.reloads.WithLabelValues("refused").Inc()
		m.current.Set(0)
		return
	}
	m.reloads.WithLabelValues("used").Inc()
	m.current.Set(1)
}
