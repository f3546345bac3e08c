package mic

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// attachmentMetrics say how identities get on the nodes' resources. What is
// counted by resource is read from the records when somebody asks, so that it is
// true on every replica and after a restart.
type attachmentMetrics struct {
	ctx                context.Context //nolint:containedctx // a collector is given none
	lookup             kube.Lookup
	assignment, pod    prometheus.Histogram
	owned, quarantined *prometheus.Desc
}

func newAttachmentMetrics(ctx context.Context, registry *prometheus.Registry, reader client.Reader) *attachmentMetrics {
	m := &attachmentMetrics{
		ctx:         ctx,
		lookup:      kube.Lookup{Reader: reader},
		assignment:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mic_assignment_seconds", Help: "From the creation of an assignment until its identity was on the node.", Buckets: longBuckets()}),
		pod:         prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mic_pod_assignment_seconds", Help: "From the time that a pod was bound to its node until its identity was there.", Buckets: longBuckets()}),
		owned:       prometheus.NewDesc("mic_owned_identities", "Identities on virtual machines and scale sets that the controller attached.", []string{"kind"}, nil),
		quarantined: prometheus.NewDesc("mic_quarantined_identities", "Identities that Azure refuses to attach, by the kind of the resource; one that two resources refuse counts twice.", []string{"kind"}, nil),
	}
	registry.MustRegister(m.assignment, m.pod, m)
	return m
}

// assigned takes in how long an assignment took. The time of its pod is zero
// where it is not known.
func (m *attachmentMetrics) assigned(took, pod time.Duration) {
	m.assignment.Observe(took.Seconds())
	if pod > 0 {
		m.pod.Observe(pod.Seconds())
	}
}

// Describe names what is counted.
func (m *attachmentMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.owned
	descs <- m.quarantined
}

// Collect counts. Until the records are read there is nothing to tell.
func (m *attachmentMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(m.ctx, time.Second)
	defer cancel()
	records, err := m.lookup.Attachments(ctx)
	if err != nil {
		return
	}
	owned, quarantined := map[compute.Kind]int{compute.VirtualMachine: 0, compute.ScaleSet: 0}, map[compute.Kind]int{}
	for _, record := range records {
		if ref, err := compute.ParseRef(record.Spec.ResourceID); err == nil {
			owned[ref.Kind] += len(record.Spec.Owned)
			quarantined[ref.Kind] += len(record.Status.Refused)
		}
	}
	for kind, count := range owned {
		out <- prometheus.MustNewConstMetric(m.owned, prometheus.GaugeValue, float64(count), string(kind))
		out <- prometheus.MustNewConstMetric(m.quarantined, prometheus.GaugeValue, float64(quarantined[kind]), string(kind))
	}
}
