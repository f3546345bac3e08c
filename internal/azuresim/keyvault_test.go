package azuresim_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

func TestManagedIdentityReadsASecretThroughTheChallenge(t *testing.T) {
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID}
	a := start(t, azuresim.Config{State: doc, TokenLifetime: time.Hour + time.Minute})
	client := secrets(t, a, managedIdentity(t, a, azidentity.ResourceID(demoID)))
	first, err := client.GetSecret(t.Context(), "greeting", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if *first.Value != "hello" || first.ID.Name() != "greeting" {
		t.Errorf("got %s = %q", *first.ID, *first.Value)
	}
	if _, err := a.ControlClient().PutSecret(t.Context(), "demo-vault", model.VaultSecret{Name: "greeting", Value: "hello again"}); err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]string{"": "hello again", first.ID.Version(): "hello"} {
		got, err := client.GetSecret(t.Context(), "greeting", version, nil)
		if err != nil {
			t.Fatal(err)
		}
		if *got.Value != want {
			t.Errorf("version %q: got %q, want %q", version, *got.Value, want)
		}
	}
	challenged := 0
	for _, e := range a.Journal.Since(0) {
		if e.Surface == journal.KeyVault && e.Status == http.StatusUnauthorized {
			challenged++
		}
	}
	if challenged != 1 {
		t.Errorf("got %d challenges, want 1: the SDK learns from the first", challenged)
	}
}

func TestSecretRefused(t *testing.T) {
	for name, test := range map[string]struct {
		role, scope string
		secret      string
		status      int
		code, words string
	}{
		"no role":                          {"", "", "greeting", 403, "Forbidden", `"code": "ForbiddenByRbac"`},
		"the owner's role is no data role": {"Owner", "/subscriptions/" + subscription, "greeting", 403, "Forbidden", "Assignment: (not found)"},
		"the role on another secret":       {"Key Vault Secrets User", vaultID + "/secrets/other", "greeting", 403, "Forbidden", "secrets/getSecret/action"},
		"no such secret":                   {"Key Vault Secrets User", userGroup, "gone", 404, "SecretNotFound", "(name/id) gone was not found"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			if test.role != "" {
				doc.RoleAssignments = append(doc.RoleAssignments, model.RoleAssignment{Principal: micObjectID, Role: test.role, Scope: test.scope})
			}
			a := start(t, azuresim.Config{State: doc})
			_, err := secrets(t, a, clientSecret(t, a, tenant, micClientID, secret)).GetSecret(t.Context(), test.secret, "", nil)
			if code := errorCode(t, err, test.status); code != test.code {
				t.Errorf("got code %s, want %s", code, test.code)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("%v does not say %q", err, test.words)
			}
		})
	}
}

func TestSecretIsReadWithARoleOnItAlone(t *testing.T) {
	doc := document()
	doc.RoleAssignments = []model.RoleAssignment{{Principal: micObjectID, Role: "key vault secrets user", Scope: vaultID + "/secrets/greeting"}}
	a := start(t, azuresim.Config{State: doc})
	if _, err := secrets(t, a, clientSecret(t, a, tenant, micClientID, secret)).GetSecret(t.Context(), "greeting", "", nil); err != nil {
		t.Error(err)
	}
}

func secrets(t *testing.T, a *azure, credential azcore.TokenCredential) *azsecrets.Client {
	t.Helper()
	client, err := azsecrets.NewClient("https://demo-vault.vault.azure.net", credential, &azsecrets.ClientOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}
