package observe_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

const prefix = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

// FuzzDelete: pods of the same names in several namespaces use a few managed
// identities through several AzureIdentities, in any case. Whatever assignment
// goes, an identity is detached exactly if no other assignment needs it.
func FuzzDelete(f *testing.F) {
	f.Add(uint64(1), uint8(4))
	f.Add(uint64(2), uint8(40))
	f.Fuzz(func(t *testing.T, seed uint64, n uint8) {
		random := rand.New(rand.NewPCG(seed, 5))
		var all []*v1.AzureAssignedIdentity
		for range int(n%64) + 1 {
			all = append(all, anAssignment(random))
		}
		seen, owned := everything(t, all)
		for len(all) > 0 {
			at := random.IntN(len(all))
			gone := all[at]
			all = slices.Delete(all, at, at+1)
			p := plan.Compute(plan.Snapshot{Seen: seen, Wanted: observe.Wanted(needs(all)), Records: owned, Now: time.Unix(0, 0)}, plan.Policy{})
			needed := slices.ContainsFunc(all, func(a *v1.AzureAssignedIdentity) bool { return resourceOf(a) == resourceOf(gone) })
			switch {
			case needed && p.Patch != nil:
				t.Fatalf("%s is detached although others need it", resourceOf(gone))
			case !needed && (p.Patch == nil || len(p.Patch.Add) > 0 || len(p.Patch.Remove) != 1 || p.Patch.Remove[0].String() != resourceOf(gone)):
				t.Fatalf("%s has lost its last pod: %+v", resourceOf(gone), p.Patch)
			}
			if p.Patch != nil {
				seen, owned = seen.Apply(p.Patch), p.After
			}
		}
	})
}

func needs(assignments []*v1.AzureAssignedIdentity) []observe.Need {
	var out []observe.Need
	for _, a := range assignments {
		if id, needed := kube.ManagedIdentity(a); needed {
			out = append(out, observe.Need{ID: id, Assignment: a})
		}
	}
	return out
}

func resourceOf(a *v1.AzureAssignedIdentity) string {
	return strings.ToLower(strings.TrimSuffix(a.Spec.AzureIdentityRef.Spec.ResourceID, "/"))
}

func anAssignment(random *rand.Rand) *v1.AzureAssignedIdentity {
	spell := []func(string) string{strings.ToUpper, strings.ToLower, func(s string) string { return s + "/" }, func(s string) string { return s }}
	pick := func(format string) string { return fmt.Sprintf(format, random.IntN(3)) }
	return &v1.AzureAssignedIdentity{
		Spec: v1.AzureAssignedIdentitySpec{
			Pod: pick("web-%d"), PodNamespace: pick("ns-%d"), NodeName: "n",
			AzureIdentityRef: &v1.AzureIdentity{
				ObjectMeta: metav1.ObjectMeta{Namespace: pick("ns-%d"), Name: pick("identity-%d")},
				Spec:       v1.AzureIdentitySpec{ResourceID: spell[random.IntN(len(spell))](prefix + pick("managed-%d")), ClientID: pick("client-%d")},
			},
		},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDAssigned},
	}
}

// everything is a resource that carries all that is needed, attached by us.
func everything(t *testing.T, all []*v1.AzureAssignedIdentity) (compute.Identities, []v1.OwnedIdentity) {
	t.Helper()
	seen := compute.Identities{Type: compute.TypeUserAssigned, Present: map[armid.ID]string{}, ETag: "e"}
	var owned []v1.OwnedIdentity
	for _, id := range observe.Wanted(needs(all)) {
		seen.Present[id] = "c"
		owned = append(owned, v1.OwnedIdentity{ResourceID: id.String(), State: v1.OwnershipOwned})
	}
	return seen, owned
}
