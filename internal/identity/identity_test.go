package identity_test

import (
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

const (
	resourceID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"
	clientID   = "ABCDEF00-1111-2222-3333-444444444444"
)

func object(spec v1.AzureIdentitySpec) *v1.AzureIdentity {
	return &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "demo"}, Spec: spec}
}

func principal(kind v1.IdentityType, auxiliary ...string) v1.AzureIdentitySpec {
	return v1.AzureIdentitySpec{Type: kind, ClientID: clientID, TenantID: "t", AuxiliaryTenantIDs: auxiliary,
		ADEndpoint: "https://login.example/", ClientPassword: &v1.SecretReference{Name: "s", Namespace: "n"}}
}

// A managed identity of before there was validation may have its resource ID
// alone; it is never without both.
func TestAResourceIDAloneNamesAManagedIdentity(t *testing.T) {
	got, err := identity.FromObject(object(v1.AzureIdentitySpec{ResourceID: resourceID}))
	if err != nil || got.ClientID.String() != "" || got.ResourceID.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestTenants(t *testing.T) {
	for name, test := range map[string]struct {
		spec v1.AzureIdentitySpec
		want string
	}{
		"one":                                  {principal(1), "t"},
		"with auxiliary ones":                  {principal(1, "a", "b", "c"), "t a b c"},
		"a certificate has none besides":       {principal(2, "a", "b"), "t"},
		"not even too many of them are an end": {principal(2, "a", "b", "c", "d"), "t"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := identity.FromObject(object(test.spec))
			if err != nil || strings.Join(got.Tenants(), " ") != test.want || got.Authority != "https://login.example/" {
				t.Errorf("got %v of %s, %v", got.Tenants(), got.Authority, err)
			}
			in := got.In("a")
			if strings.Join(in.Tenants(), " ") != "a" || in == got || in.In("t") != got.In("t") {
				t.Errorf("in one tenant: %+v", in)
			}
		})
	}
}

func TestFromObject(t *testing.T) {
	secret := &v1.SecretReference{Name: "s", Namespace: "n"}
	for name, test := range map[string]struct {
		spec     v1.AzureIdentitySpec
		kind     identity.Kind
		attached bool
	}{
		"a managed identity":             {v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID}, identity.ManagedIdentity, true},
		"a managed identity, as of 2018": {v1.AzureIdentitySpec{LegacyResourceID: resourceID, LegacyClientID: clientID}, identity.ManagedIdentity, true},
		"a federated identity":           {v1.AzureIdentitySpec{ClientID: clientID, Federation: &v1.Federation{}}, identity.ManagedIdentity, false},
		"a federated one with its ID":    {v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID, Federation: &v1.Federation{}}, identity.ManagedIdentity, false},
		"a secret":                       {v1.AzureIdentitySpec{Type: 1, ClientID: clientID, TenantID: "t", ClientPassword: secret}, identity.ServicePrincipal, false},
		"a certificate, as of 2018":      {v1.AzureIdentitySpec{Type: 2, LegacyClientID: clientID, LegacyTenantID: "t", LegacyClientPassword: &v1.LegacySecretReference{LegacyName: "s", LegacyNamespace: "n"}}, identity.ServicePrincipalCertificate, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := identity.FromObject(object(test.spec))
			if err != nil {
				t.Fatal(err)
			}
			if got.Kind != test.kind || got.Attached() != test.attached || got.String() != "ns/demo" {
				t.Errorf("got %+v", got)
			}
			if !got.ClientID.Matches(strings.ToLower(clientID)) || !got.ClientID.Matches(clientID) {
				t.Errorf("client ID %s does not match itself in another case", got.ClientID)
			}
		})
	}
}

func TestFromObjectRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		spec  v1.AzureIdentitySpec
		words string
	}{
		"neither ID":               {v1.AzureIdentitySpec{}, "node's default identity"},
		"federated, no client ID":  {v1.AzureIdentitySpec{ResourceID: resourceID, Federation: &v1.Federation{}}, "clientID is empty"},
		"a principal, no ID":       {v1.AzureIdentitySpec{Type: 1, ResourceID: resourceID, TenantID: "t", ClientPassword: &v1.SecretReference{Name: "s", Namespace: "n"}}, "clientID is empty"},
		"four auxiliary tenants":   {principal(1, "a", "b", "c", "d"), "at most 3"},
		"an empty tenant":          {principal(1, "a", ""), "empty tenant"},
		"a placeholder":            {v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "<client-id>"}, "placeholder"},
		"white space":              {v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID + "\n"}, "white space"},
		"no resource ID":           {v1.AzureIdentitySpec{ClientID: clientID}, "reading resourceID"},
		"the ID of something else": {v1.AzureIdentitySpec{ClientID: clientID, ResourceID: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"}, "not a user-assigned identity"},
		"an unknown type":          {v1.AzureIdentitySpec{Type: 7, ClientID: clientID}, "type 7 is unknown"},
		"a clash of spellings":     {v1.AzureIdentitySpec{ClientID: clientID, LegacyClientID: "x", ResourceID: resourceID}, "keep clientID only"},
		"no tenant":                {v1.AzureIdentitySpec{Type: 1, ClientID: clientID}, "tenantID is empty"},
		"no secret":                {v1.AzureIdentitySpec{Type: 2, ClientID: clientID, TenantID: "t"}, "clientPassword must name"},
		"a secret with no home":    {v1.AzureIdentitySpec{Type: 1, ClientID: clientID, TenantID: "t", ClientPassword: &v1.SecretReference{Name: "s"}}, "clientPassword must name"},
		"a federated secret":       {v1.AzureIdentitySpec{Type: 1, ClientID: clientID, TenantID: "t", Federation: &v1.Federation{}}, "type 0 only"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := identity.FromObject(object(test.spec))
			if _, ok := errors.AsType[*identity.InvalidError](err); !ok {
				t.Fatalf("got %+v, %v", got, err)
			}
			if !strings.Contains(err.Error(), test.words) || !strings.Contains(err.Error(), "ns/demo") {
				t.Errorf("error %q does not say %q of ns/demo", err, test.words)
			}
		})
	}
}

func TestNamespaced(t *testing.T) {
	obj := object(v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID})
	for value, want := range map[string]bool{"namespaced": true, "Namespaced": false, "": false, "cluster": false} {
		obj.Annotations = map[string]string{v1.BehaviorAnnotation: value}
		got, err := identity.FromObject(obj)
		if err != nil || got.Namespaced != want {
			t.Errorf("annotation %q: got %v, %v", value, got.Namespaced, err)
		}
	}
}

func TestZeroClientIDMatchesNothing(t *testing.T) {
	if (identity.ClientID{}).Matches("") {
		t.Error("an unset client ID matches an empty request")
	}
}

func TestKindString(t *testing.T) {
	for kind, want := range map[identity.Kind]string{0: "managed", 1: "secret", 2: "certificate", 9: "unknown type 9"} {
		if !strings.Contains(kind.String(), want) {
			t.Errorf("kind %d is called %q", int(kind), kind)
		}
	}
}
