// Package report is what the agent shows of itself: metrics, probes, Events.
//
// It is told what happened, and asks how things stand only when it is probed. It
// must not decide anything, nor be asked by a stage.
package report

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

// maxResources bounds the values of the label resource, which callers choose.
const maxResources = 50

// The values that dashboards know of the label operation_type. That of service
// principals is among those of the metadata service, which has no part in it.
const (
	systemIdentityOperation   = "adal_token_msi"
	managedIdentityOperation  = "adal_token_msi_userassignedid"
	servicePrincipalOperation = "adal_token"
	findPodOperation          = "get_pod_list"
)

// Metrics are the agent's. Those that begin with aadpodidentity_ have the names,
// labels and buckets of AAD Pod Identity v1.8.17, so that its dashboards stay
// right; the labels are bounded here.
type Metrics struct {
	registry *prometheus.Registry

	operations   *prometheus.HistogramVec
	imdsDuration *prometheus.HistogramVec
	imdsErrors   *prometheus.CounterVec
	apiErrors    *prometheus.CounterVec
	decisions    *prometheus.CounterVec
	cache        *prometheus.CounterVec
	limited      *prometheus.CounterVec
	upstream     *prometheus.HistogramVec
	repairs      prometheus.Counter
	auditDropped prometheus.Counter

	mu        sync.Mutex // protects all following fields
	resources map[string]bool
}

// NewMetrics returns metrics of a program of this version, in a registry of their
// own.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "aadpodidentity_nmi_operations_duration_seconds", Help: "Time to answer a token request.",
			Buckets: []float64{.5, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100},
		}, []string{"namespace", "operation_type", "resource", "status_code"}),
		imdsDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "aadpodidentity_imds_operations_duration_seconds", Help: "Time of token requests to the metadata service that succeeded.",
			Buckets: []float64{.01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1, 2, 3, 4, 5, 10},
		}, []string{"operation_type"}),
		imdsErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aadpodidentity_imds_operations_errors_count", Help: "Token requests to the metadata service that failed.",
		}, []string{"operation_type"}),
		apiErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aadpodidentity_kubernetes_api_operations_errors_count", Help: "Secrets that could not be read, and pods that could not be found.",
		}, []string{"operation_type"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nmi_decisions_total", Help: "Requests of pods, by what was decided.",
		}, []string{"route", "reason"}),
		cache: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nmi_token_cache_total", Help: "Requests to the token cache, by how it answered.",
		}, []string{"result"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nmi_limited_total", Help: "Requests and connections of pods that met a limit of the agent, by the limit.",
		}, []string{"limit"}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nmi_upstream_duration_seconds", Help: "Time of requests to the metadata service and to Entra, by how they went.",
			Buckets: prometheus.DefBuckets,
		}, []string{"upstream", "code"}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nmi_redirect_repairs_total", Help: "How often the redirect's rules had to be put back.",
		}),
		auditDropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nmi_audit_dropped_total", Help: "Decisions that the log was too slow for, and has no line of.",
		}),
		resources: map[string]bool{},
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nmi_build_info", Help: "Always 1; the label says the program's version.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(info, m.operations, m.imdsDuration, m.imdsErrors, m.apiErrors, m.decisions, m.cache, m.limited, m.upstream, m.repairs, m.auditDropped,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves /metrics, and nothing else.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}

// Decided counts one decision.
func (m *Metrics) Decided(record *audit.Record) {
	m.decisions.WithLabelValues(string(record.Route), string(record.Reason)).Inc()
	if record.Reason == v1.ReasonCallerUnknown || record.Reason == v1.ReasonCallerAmbiguous {
		m.APIFailed(findPodOperation)
	}
	if path := operationOf(record.Route); path != "" {
		m.operations.WithLabelValues(record.Pod.Namespace, path, m.resource(record), strconv.Itoa(record.Status)).Observe(record.Took.Seconds())
	}
}

// operationOf returns what the label operation_type says of a token route: its
// path, in its one spelling.
func operationOf(route audit.Route) string {
	switch route {
	case audit.RouteToken:
		return imds.TokenPath
	case audit.RouteHost:
		return "/host/token"
	}
	return ""
}

// resource returns what the label resource says: the audience of tokens that
// were issued, as far as there is room, and "other". What was merely asked for
// is the caller's to invent.
func (m *Metrics) resource(record *audit.Record) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case record.Resource == "" || m.resources[record.Resource]:
		return record.Resource
	case record.Reason != v1.ReasonIssued || len(m.resources) >= maxResources:
		return "other"
	}
	m.resources[record.Resource] = true
	return record.Resource
}

// AskedIMDS counts one token request to the metadata service.
func (m *Metrics) AskedIMDS(code string, took time.Duration) {
	m.asked("imds", managedIdentityOperation, code, took)
}

// Forwarded counts one request that the metadata service was asked in a pod's
// place, by its answer's status, 0 if there was none. One for a token that names
// no identity is, to dashboards, one for the node's own.
func (m *Metrics) Forwarded(route audit.Route, named bool, status int, took time.Duration) {
	code := codeOf(status)
	switch {
	case route != audit.RouteToken:
		m.upstream.WithLabelValues("imds_metadata", code).Observe(took.Seconds())
	case named:
		m.asked("imds", managedIdentityOperation, code, took)
	default:
		m.asked("imds", systemIdentityOperation, code, took)
	}
}

// codeOf says in the words of the sources what a status of the metadata service
// means; 0 is no answer.
func codeOf(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "throttled"
	case status == http.StatusGone:
		return "updating"
	case status == 0, status == http.StatusRequestTimeout, status >= http.StatusInternalServerError:
		return "unavailable"
	case status >= http.StatusBadRequest:
		return "refused"
	}
	return "ok"
}

// WatchAges shows for how long the API server has said nothing of each kind. It is
// called once.
func (m *Metrics) WatchAges(ages func() map[string]time.Duration) {
	m.registry.MustRegister(watchAges{ages})
}

// watchAges are asked when they are scraped.
type watchAges struct {
	ages func() map[string]time.Duration
}

var _ prometheus.Collector = watchAges{}

func watchAge() *prometheus.Desc {
	return prometheus.NewDesc("nmi_watch_age_seconds", "For how long the API server has said nothing of a kind; a quiet watch has a bookmark every minute or two.", []string{"kind"}, nil)
}

// Describe names the metric.
func (watchAges) Describe(out chan<- *prometheus.Desc) { out <- watchAge() }

// Collect reads the ages.
func (w watchAges) Collect(out chan<- prometheus.Metric) {
	for kind, age := range w.ages() {
		out <- prometheus.MustNewConstMetric(watchAge(), prometheus.GaugeValue, age.Seconds(), kind)
	}
}

// AskedEntra counts one token request to Entra.
func (m *Metrics) AskedEntra(code string, took time.Duration) {
	m.asked("entra", servicePrincipalOperation, code, took)
}

func (m *Metrics) asked(upstream, operation, code string, took time.Duration) {
	m.upstream.WithLabelValues(upstream, code).Observe(took.Seconds())
	if code != "ok" {
		m.imdsErrors.WithLabelValues(operation).Inc()
		return
	}
	m.imdsDuration.WithLabelValues(operation).Observe(took.Seconds())
}

// APIFailed counts one failure of something that is asked of the API server.
func (m *Metrics) APIFailed(operation string) {
	m.apiErrors.WithLabelValues(operation).Inc()
}

// Cached counts one answer of the token cache, by its result.
func (m *Metrics) Cached(result string) {
	m.cache.WithLabelValues(result).Inc()
}

// Limited counts one request or connection that met a limit.
func (m *Metrics) Limited(limit string) {
	m.limited.WithLabelValues(limit).Inc()
}

// Waiting shows how many requests wait for their turn at an upstream. It is
// called once for each.
func (m *Metrics) Waiting(upstream string, count func() int) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nmi_upstream_waiting", Help: "Requests that wait for their turn at an upstream.",
		ConstLabels: prometheus.Labels{"upstream": upstream},
	}, func() float64 { return float64(count()) }))
}

// Repaired counts one repair of the redirect.
func (m *Metrics) Repaired() { m.repairs.Inc() }

// AuditDropped counts one decision that the log has no line of.
func (m *Metrics) AuditDropped() { m.auditDropped.Inc() }
