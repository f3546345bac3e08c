package observe_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
)

func TestRecordName(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{
		"/subscriptions/a/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool-vmss",
		"/subscriptions/b/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool-vmss",
		"/subscriptions/a/resourceGroups/h/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool-vmss",
		"/subscriptions/a/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/aks-pool-vmss",
		"/subscriptions/a/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/_odd.(name)_",
		"/subscriptions/a/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/___",
		"/subscriptions/a/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/" + strings.Repeat("x", 300),
	} {
		name := recordName(t, id)
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s share the name %s", id, other, name)
		}
		seen[name] = id
		if errs := validation.IsDNS1123Subdomain(name); errs != nil {
			t.Errorf("%s is called %s: %v", id, name, errs)
		}
		if upper := recordName(t, strings.ToUpper(id)); upper != name {
			t.Errorf("%s is called %s in one case and %s in another", id, name, upper)
		}
	}
	for name, id := range seen {
		if strings.HasSuffix(id, "aks-pool-vmss") && !strings.HasPrefix(name, "aks-pool-vmss-") {
			t.Errorf("%s cannot be told from its name %s", id, name)
		}
	}
}

func recordName(t *testing.T, id string) string {
	t.Helper()
	ref, err := compute.ParseRef(id)
	if err != nil {
		t.Fatal(err)
	}
	return observe.RecordName(ref)
}
