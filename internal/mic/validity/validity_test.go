package validity_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/validity"
)

const resourceID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo"

func azureIdentity(spec v1.AzureIdentitySpec) *v1.AzureIdentity {
	return &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "demo"}, Spec: spec}
}

func TestOfIdentity(t *testing.T) {
	for name, test := range map[string]struct {
		spec   v1.AzureIdentitySpec
		reason v1.Reason
		words  string
	}{
		"a managed identity":           {v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "c"}, v1.ReasonValid, "can be used"},
		"in the oldest spelling":       {v1.AzureIdentitySpec{LegacyResourceID: resourceID, LegacyClientID: "c"}, v1.ReasonValid, "can be used"},
		"a federated identity":         {v1.AzureIdentitySpec{ClientID: "c", Federation: &v1.Federation{}}, v1.ReasonValid, "can be used"},
		"a placeholder":                {v1.AzureIdentitySpec{ResourceID: strings.Replace(resourceID, "/s/", "/<subscription>/", 1), ClientID: "c"}, v1.ReasonInvalidIdentity, "put the real value"},
		"a resourceID that is none":    {v1.AzureIdentitySpec{ResourceID: "demo", ClientID: "c"}, v1.ReasonInvalidIdentity, "ns/demo cannot be used"},
		"two spellings that differ":    {v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "c", LegacyClientID: "d"}, v1.ReasonInvalidIdentity, "keep clientID only"},
		"a principal without a tenant": {v1.AzureIdentitySpec{Type: 1, ClientID: "c"}, v1.ReasonInvalidIdentity, "tenantID"},
	} {
		t.Run(name, func(t *testing.T) {
			got := validity.OfIdentity(azureIdentity(test.spec))
			if got.Reason != test.reason || !strings.Contains(got.Message, test.words) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestOfBinding(t *testing.T) {
	good := azureIdentity(v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "c"})
	for name, test := range map[string]struct {
		spec   v1.AzureIdentityBindingSpec
		named  *v1.AzureIdentity
		reason v1.Reason
		words  string
	}{
		"usable":                    {v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "x"}, good, v1.ReasonValid, "aadpodidbinding=x"},
		"in the oldest spelling":    {v1.AzureIdentityBindingSpec{LegacyAzureIdentity: "demo", LegacySelector: "x"}, good, v1.ReasonValid, "AzureIdentity demo"},
		"to a missing identity":     {v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "x"}, nil, v1.ReasonIdentityNotFound, "create it beside the binding"},
		"to an invalid identity":    {v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "x"}, azureIdentity(v1.AzureIdentitySpec{}), v1.ReasonInvalidIdentity, "ns/demo"},
		"without an identity":       {v1.AzureIdentityBindingSpec{Selector: "x"}, nil, v1.ReasonInvalidBinding, "azureIdentity is empty"},
		"without a selector":        {v1.AzureIdentityBindingSpec{AzureIdentity: "demo"}, good, v1.ReasonInvalidBinding, "selector is empty"},
		"two spellings that differ": {v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "x", LegacySelector: "y"}, good, v1.ReasonInvalidBinding, "keep selector only"},
	} {
		t.Run(name, func(t *testing.T) {
			got := validity.OfBinding(&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: test.spec}, test.named)
			if got.Reason != test.reason || !strings.Contains(got.Message, test.words) {
				t.Errorf("got %+v", got)
			}
		})
	}
}
