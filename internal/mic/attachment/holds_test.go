package attachment

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

const setID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/pool"

func ref(t *testing.T, id string) compute.Ref {
	t.Helper()
	out, err := compute.ParseRef(id)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		set, other := ref(t, setID), ref(t, setID+"-2")
		if err := h.of(set); err != nil {
			t.Errorf("kept from the start: %v", err)
		}
		h.set(set, nil)
		h.set(set, &armclient.ConflictError{})
		if err := h.of(set); err != nil {
			t.Errorf("kept for a failure that asks for no time: %v", err)
		}
		h.set(set, &armclient.NotStartedError{Err: &armclient.ThrottledError{After: time.Minute, Message: "slow"}})
		time.Sleep(40 * time.Second) //nolint:forbidigo // in a bubble of synctest
		var throttled *armclient.ThrottledError
		if err := h.of(set); !errors.As(err, &throttled) || throttled.After != 20*time.Second || throttled.Message != "slow" {
			t.Errorf("got %v, want 20 s more", err)
		}
		if err := h.of(other); err != nil {
			t.Errorf("another is kept: %v", err)
		}
		time.Sleep(20 * time.Second) //nolint:forbidigo // in a bubble of synctest
		if err := h.of(set); err != nil {
			t.Errorf("kept too long: %v", err)
		}
		h.set(set, &armclient.UnavailableError{After: time.Second, Err: errors.New("busy")})
		first, _ := report.Explain(&armclient.UnavailableError{After: time.Second, Err: errors.New("busy")})
		if err := h.of(set); report.RetryAfter(err) != time.Second {
			t.Errorf("got %v", err)
		} else if again, _ := report.Explain(err); again != first {
			t.Errorf("said as %s first and as %s then", first, again)
		}
	})
}

func TestUnplaced(t *testing.T) {
	for name, test := range map[string]struct {
		node *corev1.Node
		want v1.Reason
	}{
		"no node":              {nil, v1.ReasonNodeNotFound},
		"no providerID yet":    {&corev1.Node{}, v1.ReasonUnsupportedNode},
		"another cloud":        {&corev1.Node{Spec: corev1.NodeSpec{ProviderID: "kind://x"}}, v1.ReasonUnsupportedNode},
		"a virtual machine":    {&corev1.Node{Spec: corev1.NodeSpec{ProviderID: "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"}}, ""},
		"a scale set's member": {&corev1.Node{Spec: corev1.NodeSpec{ProviderID: "azure://" + setID + "/virtualMachines/3"}}, ""},
	} {
		if got, message := unplaced("n", test.node); got != test.want || (got == "") != (message == "") {
			t.Errorf("%s: got %q %q, want %q", name, got, message, test.want)
		}
	}
}

func TestMatters(t *testing.T) {
	state := func(status, client string) *v1.AzureAssignedIdentity {
		return &v1.AzureAssignedIdentity{
			Spec:   v1.AzureAssignedIdentitySpec{AzureIdentityRef: &v1.AzureIdentity{Spec: v1.AzureIdentitySpec{ClientID: client}}},
			Status: v1.AzureAssignedIdentityStatus{Status: status},
		}
	}
	for name, test := range map[string]struct {
		before, after *v1.AzureAssignedIdentity
		want          bool
	}{
		"what we reported":             {state("Created", "a"), state("Assigned", "a"), false},
		"a condition only":             {state("Created", "a"), state("Created", "a"), false},
		"another identity":             {state("Assigned", "a"), state("Created", "b"), true},
		"somebody took the state back": {state("Assigned", "a"), state("Created", "a"), true},
		"somebody unassigned it":       {state("Assigned", "a"), state("Unassigned", "a"), true},
	} {
		if got := matters(test.before, test.after); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
