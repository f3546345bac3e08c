package report

import "github.com/prometheus/client_golang/prometheus"

// Callers shows how many addresses of pods are proven how. It is called once for
// each proof.
func (m *Metrics) Callers(proof string, count func() int) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nmi_caller_addresses", Help: "Addresses of the node's pods, by what ties them to their pod.",
		ConstLabels: prometheus.Labels{"proof": proof},
	}, func() float64 { return float64(count()) }))
}

// counted registers a counter, and returns what adds to it.
func (m *Metrics) counted(name, help, label string) func(value string) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	m.registry.MustRegister(counter)
	return func(value string) { counter.WithLabelValues(value).Inc() }
}

// Lost returns what counts addresses that lost their link, by the cause. It is
// called once.
func (m *Metrics) Lost() func(cause string) {
	return m.counted("nmi_caller_lost_total", "Addresses of pods that their link no longer carried, or that another link spoke from, by the cause.", "cause")
}

// Probed returns what counts probes of the redirect, by the result. It is called
// once.
func (m *Metrics) Probed() func(result string) {
	return m.counted("nmi_redirect_probes_total", "Connections that the agent made as a pod would, to see that they come to it, by the result.", "result")
}
