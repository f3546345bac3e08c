package mic

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/pace"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// armTraffic counts what goes to ARM on the wire. The metrics of the old system's
// dashboards count reads and changes as a whole.
type armTraffic struct {
	requests *prometheus.CounterVec
	waits    *prometheus.HistogramVec
}

func newARMTraffic(registry prometheus.Registerer) *armTraffic {
	a := &armTraffic{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mic_arm_requests_total",
			Help: "Requests to ARM on the wire, by operation (vmss_get, vmss_update, vmss_poll, vm_…) and status code; none: there was no answer.",
		}, []string{"operation", "code"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mic_arm_throttle_wait_seconds",
			Help:    "Waits for ARM's limits: own are to keep under them, asked are ARM's.",
			Buckets: []float64{.1, .5, 1, 5, 15, 30, 60, 120, 300, 900},
		}, []string{"operation", "scope", "cause"}),
	}
	registry.MustRegister(a.requests, a.waits)
	return a
}

func (a *armTraffic) sent(s pace.Sent) {
	operation := "vmss_" + string(s.Class)
	if s.Kind == compute.VirtualMachine {
		operation = "vm_" + string(s.Class)
	}
	if s.Wait == nil {
		a.requests.WithLabelValues(operation, codeOf(s.Status)).Inc()
		return
	}
	cause := "own"
	if s.Wait.Asked {
		cause = "asked"
	}
	a.waits.WithLabelValues(operation, string(s.Wait.Scope), cause).Observe(s.Wait.After.Seconds())
}

// codeOf is a label: HTTP's own codes and nothing else, of which ARM uses a
// handful.
func codeOf(status int) string {
	switch {
	case status == 0:
		return "none"
	case status < 200 || status > 599:
		return "other"
	}
	return strconv.Itoa(status)
}

// budgets collects what is left of ARM's limits when it is asked for.
type budgets struct {
	of   func() []throttle.Budget
	desc *prometheus.Desc
}

func newBudgets(of func() []throttle.Budget) budgets {
	return budgets{of: of, desc: prometheus.NewDesc("mic_arm_remaining_requests",
		"Requests that could be sent to ARM at once, by the emptiest bucket of a scope (resource, subscription, principal) and operation (get, update, poll).",
		[]string{"scope", "operation"}, nil)}
}

// Describe says what is collected.
func (b budgets) Describe(to chan<- *prometheus.Desc) { to <- b.desc }

// Collect asks for the budgets.
func (b budgets) Collect(to chan<- prometheus.Metric) {
	for _, budget := range b.of() {
		to <- prometheus.MustNewConstMetric(b.desc, prometheus.GaugeValue, budget.Left, string(budget.Scope), string(budget.Class))
	}
}
