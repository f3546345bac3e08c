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

	mu        sync.Mutex // protects all following fields
	resources map[string]bool
}

// NewMetrics returns metrics in a registry of their own.
func NewMetrics() *Metrics {
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
			Name: "nmi_upstream_duration_seconds", Help: "Time of token requests to the metadata service and to Entra, by how they went.",
			Buckets: prometheus.DefBuckets,
		}, []string{"upstream", "code"}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nmi_redirect_repairs_total", Help: "How often the redirect's rules had to be put back.",
		}),
		resources: map[string]bool{},
	}
	m.registry.MustRegister(m.operations, m.imdsDuration, m.imdsErrors, m.apiErrors, m.decisions, m.cache, m.limited, m.upstream, m.repairs,
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
