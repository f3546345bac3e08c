package v1_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

func TestIdentitySpecNormalized(t *testing.T) {
	secret := &v1.SecretReference{Name: "s", Namespace: "n"}
	for name, test := range map[string]struct {
		in, want v1.AzureIdentitySpec
		clash    string
	}{
		"today's spelling stays as it is": {
			in:   v1.AzureIdentitySpec{Type: 1, ResourceID: "r", ClientID: "c", TenantID: "t", ClientPassword: secret},
			want: v1.AzureIdentitySpec{Type: 1, ResourceID: "r", ClientID: "c", TenantID: "t", ClientPassword: secret},
		},
		"old spellings become their twins": {
			in:   v1.AzureIdentitySpec{LegacyResourceID: "r", LegacyClientID: "c", LegacyTenantID: "t", LegacyClientPassword: &v1.LegacySecretReference{LegacyName: "s", LegacyNamespace: "n"}},
			want: v1.AzureIdentitySpec{ResourceID: "r", ClientID: "c", TenantID: "t", ClientPassword: secret},
		},
		"an old password with today's keys": {
			in:   v1.AzureIdentitySpec{LegacyClientPassword: &v1.LegacySecretReference{Name: "s", LegacyNamespace: "n"}},
			want: v1.AzureIdentitySpec{ClientPassword: secret},
		},
		"both spellings that agree": {
			in:   v1.AzureIdentitySpec{ClientID: "c", LegacyClientID: "c", ClientPassword: secret, LegacyClientPassword: &v1.LegacySecretReference{LegacyName: "s", LegacyNamespace: "n"}},
			want: v1.AzureIdentitySpec{ClientID: "c", ClientPassword: secret},
		},
		"resourceID clashes":     {in: v1.AzureIdentitySpec{ResourceID: "a", LegacyResourceID: "b"}, clash: "resourceID"},
		"clientID clashes":       {in: v1.AzureIdentitySpec{ClientID: "a", LegacyClientID: "b"}, clash: "clientID"},
		"tenantID clashes":       {in: v1.AzureIdentitySpec{TenantID: "a", LegacyTenantID: "b"}, clash: "tenantID"},
		"clientPassword clashes": {in: v1.AzureIdentitySpec{ClientPassword: secret, LegacyClientPassword: &v1.LegacySecretReference{LegacyName: "x"}}, clash: "clientPassword"},
		"a password's name clashes": {
			in: v1.AzureIdentitySpec{LegacyClientPassword: &v1.LegacySecretReference{Name: "a", LegacyName: "b"}}, clash: "name",
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := test.in.DeepCopy()
			got, err := test.in.Normalized()
			checkClash(t, err, test.clash)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(*before, test.in); diff != "" {
				t.Errorf("the receiver was changed: %s", diff)
			}
		})
	}
}

func TestBindingSpecNormalized(t *testing.T) {
	for name, test := range map[string]struct {
		in, want v1.AzureIdentityBindingSpec
		clash    string
	}{
		"old spellings":          {in: v1.AzureIdentityBindingSpec{LegacyAzureIdentity: "i", LegacySelector: "s"}, want: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: "s"}},
		"mixed spellings":        {in: v1.AzureIdentityBindingSpec{AzureIdentity: "i", LegacySelector: "s"}, want: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: "s"}},
		"azureIdentity clashes":  {in: v1.AzureIdentityBindingSpec{AzureIdentity: "i", LegacyAzureIdentity: "j"}, clash: "azureIdentity"},
		"selector clashes":       {in: v1.AzureIdentityBindingSpec{Selector: "s", LegacySelector: "S"}, clash: "selector"},
		"a binding of weight 10": {in: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Weight: 10}, want: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Weight: 10}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.in.Normalized()
			checkClash(t, err, test.clash)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExceptionSpecNormalized(t *testing.T) {
	labels := map[string]string{"app": "mic"}
	for name, test := range map[string]struct {
		in, want v1.AzurePodIdentityExceptionSpec
		clash    string
	}{
		"today's spelling": {in: v1.AzurePodIdentityExceptionSpec{PodLabels: labels}, want: v1.AzurePodIdentityExceptionSpec{PodLabels: labels}},
		"old spelling":     {in: v1.AzurePodIdentityExceptionSpec{LegacyPodLabels: labels}, want: v1.AzurePodIdentityExceptionSpec{PodLabels: labels}},
		"both agree":       {in: v1.AzurePodIdentityExceptionSpec{PodLabels: labels, LegacyPodLabels: labels}, want: v1.AzurePodIdentityExceptionSpec{PodLabels: labels}},
		"podLabels clash":  {in: v1.AzurePodIdentityExceptionSpec{PodLabels: labels, LegacyPodLabels: map[string]string{"app": "nmi"}}, clash: "podLabels"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.in.Normalized()
			checkClash(t, err, test.clash)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func checkClash(t *testing.T, err error, field string) {
	t.Helper()
	var clash *v1.ClashError
	switch {
	case field == "" && err != nil:
		t.Fatal(err)
	case field != "" && !errors.As(err, &clash):
		t.Fatalf("got %v, want a clash of %s", err, field)
	case field != "" && clash.Field != field:
		t.Fatalf("got a clash of %s, want %s", clash.Field, field)
	}
}
