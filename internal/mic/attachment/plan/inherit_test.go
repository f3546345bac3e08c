package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
)

func TestInherited(t *testing.T) {
	ready := []metav1.Condition{{Type: v1.ConditionReady, Status: metav1.ConditionTrue}}
	for name, test := range map[string]struct {
		edit             func(*v1.AzureAssignedIdentity)
		fresh, rerecords bool // without a record, and with one
	}{
		"of v1.8.17":                    {func(*v1.AzureAssignedIdentity) {}, true, true},
		"older than states":             {func(a *v1.AzureAssignedIdentity) { a.Status.Status = "" }, true, true},
		"its finalizer was released":    {func(a *v1.AzureAssignedIdentity) { a.Finalizers = nil }, true, false},
		"another finalizer":             {func(a *v1.AzureAssignedIdentity) { a.Finalizers = []string{"other"} }, true, false},
		"being deleted":                 {func(a *v1.AzureAssignedIdentity) { a.DeletionTimestamp = &metav1.Time{} }, true, true},
		"was being attached":            {func(a *v1.AzureAssignedIdentity) { a.Status.Status = "Created" }, false, false},
		"was detached":                  {func(a *v1.AzureAssignedIdentity) { a.Status.Status = "Unassigned" }, false, false},
		"ours":                          {func(a *v1.AzureAssignedIdentity) { a.Status.Conditions, a.Finalizers = ready, nil }, false, false},
		"seen by us, and still with it": {func(a *v1.AzureAssignedIdentity) { a.Status.Conditions = ready }, false, false},
		"in capitals": {func(a *v1.AzureAssignedIdentity) {
			s := &a.Spec.AzureIdentityRef.Spec
			s.LegacyResourceID, s.LegacyClientID, s.ResourceID, s.ClientID = strings.ToUpper(s.ResourceID), s.ClientID, "", ""
		}, true, true},
		"without a copy":  {func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef = nil }, false, false},
		"cannot be read":  {func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.ResourceID = "odd" }, false, false},
		"a federated one": {func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.Federation = &v1.Federation{} }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := &v1.AzureAssignedIdentity{
				ObjectMeta: metav1.ObjectMeta{Finalizers: []string{v1.AssignedIdentityFinalizer}},
				Spec:       v1.AzureAssignedIdentitySpec{AzureIdentityRef: &v1.AzureIdentity{Spec: v1.AzureIdentitySpec{ResourceID: prefix + "a", ClientID: "c"}}},
				Status:     v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDAssigned, AvailableReplicas: 1},
			}
			test.edit(a)
			for recorded, want := range map[bool]bool{false: test.fresh, true: test.rerecords} {
				id, says := plan.Inherited(a, recorded)
				if says != want || says && id != ids(t, "a")[0] {
					t.Errorf("recorded %v: got %v %s, want %v", recorded, says, id, want)
				}
			}
		})
	}
}

func TestInherit(t *testing.T) {
	before := records("b:owned c:attaching@x")
	got := plan.Inherit(before, ids(t, "cabd"))
	if diff := cmp.Diff(records("a:inherited b:owned c:attaching@x d:inherited"), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(records("b:owned c:attaching@x"), before); diff != "" {
		t.Errorf("the records before were changed:\n%s", diff)
	}
}
