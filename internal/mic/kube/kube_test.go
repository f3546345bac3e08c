package kube_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// TestNamedOnce: the name of a pod is nobody else's if the API server made it up.
func TestNamedOnce(t *testing.T) {
	for why, c := range map[string]struct {
		generate, name string
		want           bool
	}{
		"a ReplicaSet's":                  {"web-5d5f8b7c9d-", "web-5d5f8b7c9d-x2x4v", true},
		"a Job's":                         {"backup-", "backup-zzzzz", true},
		"made by hand":                    {"", "web", false},
		"made by hand, and it looks so":   {"", "x2x4v", false},
		"a StatefulSet's":                 {"web-", "web-0", false},
		"a StatefulSet's, of five digits": {"web-", "web-24567", false},
		"of random digits, by chance":     {"web-5d5f8b7c9d-", "web-5d5f8b7c9d-24567", false},
		"too short an end":                {"web-", "web-x2x4", false},
		"too long an end":                 {"web-", "web-x2x4vv", false},
		"a letter that is never used":     {"web-", "web-x2a4v", false},
		"a digit that is never used":      {"web-", "web-x0x4v", false},
		"two parts":                       {"web-", "web-x2-4v", false},
		"another name altogether":         {"web-", "api-x2x4v", false},
		"a long one, cut by the server":   {strings.Repeat("a", 60), strings.Repeat("a", 58) + "x2x4v", false},
		"its generateName alone":          {"web-", "web-", false},
	} {
		t.Run(why, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: c.generate, Name: c.name}}
			if got := kube.NamedOnce(pod); got != c.want {
				t.Errorf("%s of %q: %v", c.name, c.generate, got)
			}
		})
	}
}
