package mic

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/pace"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

func TestARMMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	traffic := newARMTraffic(registry)
	registry.MustRegister(newBudgets(func() []throttle.Budget {
		return []throttle.Budget{{Scope: throttle.Subscription, Class: throttle.Read, Left: 7}}
	}))
	for _, s := range []pace.Sent{
		{Kind: compute.ScaleSet, Class: throttle.Update, Status: 202},
		{Kind: compute.ScaleSet, Class: throttle.Update, Status: 202},
		{Kind: compute.VirtualMachine, Class: throttle.Poll, Status: 0},
		{Kind: compute.VirtualMachine, Class: throttle.Read, Status: 999},
		{Kind: compute.ScaleSet, Class: throttle.Update, Wait: &throttle.NotBeforeError{After: 20 * time.Second, Scope: throttle.Resource}},
		{Kind: compute.ScaleSet, Class: throttle.Read, Wait: &throttle.NotBeforeError{After: time.Second, Scope: throttle.Subscription, Asked: true}},
	} {
		traffic.sent(s)
	}
	want := `
# HELP mic_arm_remaining_requests Requests that could be sent to ARM at once, by the emptiest bucket of a scope (resource, subscription, principal) and operation (get, update, poll).
# TYPE mic_arm_remaining_requests gauge
mic_arm_remaining_requests{operation="get",scope="subscription"} 7
# HELP mic_arm_requests_total Requests to ARM on the wire, by operation (vmss_get, vmss_update, vmss_poll, vm_…) and status code; none: there was no answer.
# TYPE mic_arm_requests_total counter
mic_arm_requests_total{code="202",operation="vmss_update"} 2
mic_arm_requests_total{code="none",operation="vm_poll"} 1
mic_arm_requests_total{code="other",operation="vm_get"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "mic_arm_remaining_requests", "mic_arm_requests_total"); err != nil {
		t.Error(err)
	}
	if got := testutil.CollectAndCount(traffic.waits); got != 2 {
		t.Errorf("got %d kinds of waits, want own and asked", got)
	}
}
