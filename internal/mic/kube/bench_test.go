package kube_test

import (
	"testing"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// BenchmarkManagedIdentity reads what an assignment needs, as every pass over a
// scale set does for each of its pods, some thousands of times.
func BenchmarkManagedIdentity(b *testing.B) {
	a := &v1.AzureAssignedIdentity{Spec: v1.AzureAssignedIdentitySpec{AzureIdentityRef: &v1.AzureIdentity{Spec: v1.AzureIdentitySpec{
		ResourceID: "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/Apps/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo",
		ClientID:   "CCCCCCCC-0000-4000-8000-000000000001",
	}}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, needed := kube.ManagedIdentity(a); !needed {
			b.Fatal("it is not needed")
		}
	}
}
