package kube_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

func TestSelectorsAndNames(t *testing.T) {
	for name, test := range map[string]struct {
		spec      v1.AzureIdentityBindingSpec
		selectors []string
		names     []identity.Key
	}{
		"today's spelling":            {v1.AzureIdentityBindingSpec{Selector: "a", AzureIdentity: "i"}, []string{"a"}, []identity.Key{{Namespace: "ns", Name: "i"}}},
		"the oldest":                  {v1.AzureIdentityBindingSpec{LegacySelector: "a", LegacyAzureIdentity: "i"}, []string{"a"}, []identity.Key{{Namespace: "ns", Name: "i"}}},
		"both, and the same":          {v1.AzureIdentityBindingSpec{Selector: "a", LegacySelector: "a"}, []string{"a"}, nil},
		"both, and they differ":       {v1.AzureIdentityBindingSpec{Selector: "a", LegacySelector: "b"}, []string{"a", "b"}, nil},
		"neither: it selects nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			b := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: test.spec}
			if diff := cmp.Diff(test.selectors, kube.Selectors(b)); diff != "" {
				t.Errorf("selectors (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.names, kube.Names(b)); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		})
	}
}

func TestManagedIdentity(t *testing.T) {
	const resourceID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"
	for name, test := range map[string]struct {
		edit   func(*v1.AzureAssignedIdentity)
		needed bool
	}{
		"a managed identity":      {func(*v1.AzureAssignedIdentity) {}, true},
		"of an old controller":    {func(a *v1.AzureAssignedIdentity) { a.Status.Status = "" }, true},
		"being deleted":           {func(a *v1.AzureAssignedIdentity) { a.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }, false},
		"about to be deleted":     {func(a *v1.AzureAssignedIdentity) { a.Status.Status = "Unassigned" }, false},
		"no copy of the identity": {func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef = nil }, false},
		"one that cannot be read": {func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.ResourceID = "x" }, false},
		"a federated one":         {func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.Federation = &v1.Federation{} }, false},
		"a service principal": {func(a *v1.AzureAssignedIdentity) {
			a.Spec.AzureIdentityRef.Spec = v1.AzureIdentitySpec{Type: 1, ClientID: "c", TenantID: "t", ClientPassword: &v1.SecretReference{Name: "n", Namespace: "s"}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := &v1.AzureAssignedIdentity{
				Spec:   v1.AzureAssignedIdentitySpec{AzureIdentityRef: &v1.AzureIdentity{Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "c"}}},
				Status: v1.AzureAssignedIdentityStatus{Status: "Created"},
			}
			test.edit(a)
			if id, needed := kube.ManagedIdentity(a); needed != test.needed || id.IsZero() == test.needed {
				t.Errorf("got %s, %v", id, needed)
			}
		})
	}
}

// TestScopeTrims: a cached pod or node holds what is used, and nothing else.
func TestScopeTrims(t *testing.T) {
	options, err := kube.Scope("mic")
	if err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "n", UID: "u", ResourceVersion: "1", Labels: map[string]string{v1.PodLabel: "x", "app": "web"}, Annotations: map[string]string{"big": "value"}}
	checked := 0
	for _, test := range []struct{ in, want client.Object }{
		{
			&corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{{Type: corev1.PodReady}, {Type: corev1.PodScheduled, Message: "x"}}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "n", UID: "u", ResourceVersion: "1", Labels: map[string]string{v1.PodLabel: "x"}}, Spec: corev1.PodSpec{NodeName: "node"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled}}}},
		},
		{
			&corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{ProviderID: "p", PodCIDR: "x"}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "1"}, Spec: corev1.NodeSpec{ProviderID: "p"}},
		},
	} {
		for object, by := range options.ByObject {
			if typeName(object) == typeName(test.in) {
				checked++
				got, err := by.Transform(test.in)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%T (-want +got):\n%s", test.in, diff)
				}
			}
		}
	}
	if checked != 2 {
		t.Errorf("checked %d kinds, want 2", checked)
	}
}

func typeName(object client.Object) string {
	switch object.(type) {
	case *corev1.Pod:
		return "pod"
	case *corev1.Node:
		return "node"
	}
	return ""
}
