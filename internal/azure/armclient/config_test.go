package armclient_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

func write(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "azure.json")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func none(string) string { return "" }

func TestReadConfig(t *testing.T) {
	for name, test := range map[string]struct {
		content string
		want    armclient.Config
	}{
		"a service principal, as AKS writes it": {
			`{"cloud":"AzurePublicCloud","tenantId":"t","subscriptionId":"s","aadClientId":"c","aadClientSecret":"x","resourceGroup":"g","vmType":"vmss","loadBalancerSku":"Standard","useInstanceMetadata":true,"maximumLoadBalancerRuleCount":250}`,
			armclient.Config{Cloud: "AzurePublicCloud", TenantID: "t", ClientID: "c", ClientSecret: "x"},
		},
		"a managed identity, with AKS's msi in the place of a secret": {
			`{"cloud":"AzureChinaCloud","tenantId":"t","aadClientId":"msi","aadClientSecret":"msi","useManagedIdentityExtension":true,"userAssignedIdentityID":"u"}`,
			armclient.Config{Cloud: "AzureChinaCloud", ManagedIdentity: true, ManagedIdentityClientID: "u"},
		},
		"a managed identity, and a key in the wrong case that it does not need": {
			`{"cloud":"AzureCloud","tenantID":"t","aadClientID":"msi","useManagedIdentityExtension":"TRUE"}`,
			armclient.Config{Cloud: "AzureCloud", ManagedIdentity: true},
		},
		"YAML, system-assigned": {
			"cloud: azureusgovernment\nuseManagedIdentityExtension: true\nuserAssignedIdentityID: null\n",
			armclient.Config{Cloud: "azureusgovernment", ManagedIdentity: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := armclient.ReadConfig(write(t, test.content), none)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b armclient.Secret) bool { return a == b })); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
			if shown := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(shown, `"x"`) || strings.Contains(shown, " x}") {
				t.Errorf("the secret shows: %s", shown)
			}
		})
	}
}

func TestReadConfigRefuses(t *testing.T) {
	for name, test := range map[string]struct{ content, words string }{
		"a managed identity's client ID in the wrong case": {`{"cloud":"AzureCloud","useManagedIdentityExtension":true,"userAssignedIdentityId":"u"}`, "key userAssignedIdentityID in "},
		"an empty file":              {"", "key cloud in "},
		"no cloud":                   {`{"useManagedIdentityExtension":true}`, "key cloud in "},
		"an unknown cloud":           {`{"cloud":"AzurePubicCloud","useManagedIdentityExtension":true}`, `"AzurePubicCloud" is unknown`},
		"a closed cloud":             {`{"cloud":"AzureGermanCloud","useManagedIdentityExtension":true}`, "was closed"},
		"a key in the wrong case":    {`{"cloud":"AzureCloud","tenantId":"t","aadClientID":"c","aadClientSecret":"x"}`, "key aadClientId in "},
		"no secret":                  {`{"cloud":"AzureCloud","tenantId":"t","aadClientId":"c"}`, "key aadClientSecret in "},
		"no tenant":                  {`{"cloud":"AzureCloud","aadClientId":"c","aadClientSecret":"x"}`, "key tenantId in "},
		"a list":                     {`{"cloud":["AzureCloud"]}`, "want text"},
		"neither true nor false":     {`{"cloud":"AzureCloud","useManagedIdentityExtension":"yes"}`, "want true or false"},
		"no YAML":                    {`{`, "azure.json"},
		"a cloud of one's own, bare": {`{"cloud":"AzureStackCloud","useManagedIdentityExtension":true}`, "AZURE_ENVIRONMENT_FILEPATH"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := armclient.ReadConfig(write(t, test.content), none)
			if err == nil || !strings.Contains(err.Error(), test.words) || !strings.Contains(err.Error(), "azure.json") {
				t.Errorf("got %v, want words %q and the file", err, test.words)
			}
		})
	}
	if _, err := armclient.ReadConfig(filepath.Join(t.TempDir(), "none"), none); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestConfigFromEnvironment(t *testing.T) {
	environment := map[string]string{"CLOUD": "AzureCloud", "USE_MSI": "TRUE", "USER_ASSIGNED_MSI_CLIENT_ID": "u"}
	got, err := armclient.ConfigFromEnvironment(func(name string) string { return environment[name] })
	if err != nil || !got.ManagedIdentity || got.ManagedIdentityClientID != "u" {
		t.Errorf("got %+v, %v", got, err)
	}
	delete(environment, "USE_MSI")
	if _, err := armclient.ConfigFromEnvironment(func(name string) string { return environment[name] }); err == nil || !strings.Contains(err.Error(), "environment variable TENANT_ID") {
		t.Errorf("got %v", err)
	}
}

func TestCloudOfOnesOwn(t *testing.T) {
	file := write(t, `{"resourceManagerEndpoint":"https://management.azure.com/","activeDirectoryEndpoint":"https://login.microsoftonline.com/","tokenAudience":"https://management.core.windows.net/"}`)
	a := start(t, azuresim.Config{State: document()})
	config := armclient.Config{Cloud: "AzureStackCloud", EnvironmentFile: file, TenantID: tenant, ClientID: appClientID, ClientSecret: secret}
	if _, err := newClient(t, config, armclient.Options{Transport: a}).Get(t.Context(), ref(t, setID)); err != nil {
		t.Error(err)
	}
	for name, content := range map[string]string{"resourceManagerEndpoint": `{"activeDirectoryEndpoint":"x","tokenAudience":"x"}`, "tokenAudience": `{"activeDirectoryEndpoint":"x","resourceManagerEndpoint":"x"}`} {
		config.EnvironmentFile = write(t, content)
		if _, err := armclient.New(config, armclient.Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want words about %s", err, name)
		}
	}
}

// TestManagedIdentityRecoversByItself uses a client ID of its own: the SDK keeps
// tokens for the whole process.
func TestManagedIdentityRecoversByItself(t *testing.T) {
	clientID := uuid.NewString()
	doc := document()
	doc.Identities[0].ClientID = clientID
	a := start(t, azuresim.Config{State: doc})
	var up atomic.Bool
	a.before = func(r *http.Request) error {
		if !up.Load() && r.URL.Host == "169.254.169.254" {
			return errors.New("connection refused")
		}
		return nil
	}
	client := newClient(t, armclient.Config{Cloud: "AzureCloud", ManagedIdentity: true, ManagedIdentityClientID: clientID}, armclient.Options{Transport: a})
	if _, err := client.Get(t.Context(), ref(t, setID)); kind(err) != "unavailable" {
		t.Errorf("got %v, want that the token cannot be had", err)
	}
	up.Store(true)
	if _, err := client.Get(t.Context(), ref(t, setID)); err != nil {
		t.Errorf("does not recover: %v", err)
	}
}

// TestSystemAssigned: the scale set's own identity has no role in this document.
func TestSystemAssigned(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	client := newClient(t, armclient.Config{Cloud: "AzureCloud", ManagedIdentity: true}, armclient.Options{Transport: a})
	if _, err := client.Get(t.Context(), ref(t, setID)); kind(err) != "denied" {
		t.Errorf("got %v, want that a right is missing", err)
	}
}

func TestWrongSecret(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	config := armclient.Config{Cloud: "AzureCloud", TenantID: tenant, ClientID: appClientID, ClientSecret: "wrong"}
	_, err := newClient(t, config, armclient.Options{Transport: a}).Get(t.Context(), ref(t, setID))
	if kind(err) != "unavailable" || strings.Contains(err.Error(), "wrong\"") {
		t.Errorf("got %v", err)
	}
}
