package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

const (
	group       = "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/lab"
	vaultName   = "demo-vault"
	vaultID     = group + "/providers/Microsoft.KeyVault/vaults/" + vaultName
	vaultURL    = "https://" + vaultName + ".vault.azure.net"
	secretValue = "it works, and nobody was given a password"
	demoImage   = "lab.local/aad-pod-identity/demo:dev"
)

// cloud is what the demo makes in Azure.
type cloud struct {
	identity model.Identity
}

// furnish does what the tutorial asks a reader to do with the Azure command line.
// In a lab that was kept it finds the identity of the last time.
func (d *demo) furnish(ctx context.Context) error {
	const id = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo1"
	doc, err := d.lab.Sim.State(ctx)
	if err != nil {
		return fmt.Errorf("reading the simulated Azure: %w", err)
	}
	for _, known := range doc.Identities {
		if strings.EqualFold(known.ID, id) {
			d.cloud.identity = known
			return nil
		}
	}
	if d.cloud.identity, err = d.lab.Sim.AddIdentity(ctx, model.Identity{ID: id}); err != nil {
		return fmt.Errorf("making the identity: %w", err)
	}
	vault := model.Vault{ID: vaultID, Secrets: []model.VaultSecret{{Name: "demo", Value: secretValue}}}
	if _, err := d.lab.Sim.AddVault(ctx, vault); err != nil {
		return fmt.Errorf("making the key vault: %w", err)
	}
	role := model.RoleAssignment{Principal: d.cloud.identity.PrincipalID, Role: "Key Vault Secrets User", Scope: vaultID}
	if _, err := d.lab.Sim.AssignRole(ctx, role); err != nil {
		return fmt.Errorf("giving the right to read the secret: %w", err)
	}
	return nil
}

// example is a manifest of the tutorial, with the values that it asks a reader
// for.
func (d *demo) example(name string) string {
	text, err := os.ReadFile(filepath.Join(env.Root(), "examples", "demo", name)) //nolint:gosec // a file of this project
	if err != nil {
		return "# " + err.Error() // applying it fails, and says this
	}
	return strings.NewReplacer(
		"$IDENTITY_RESOURCE_ID", d.cloud.identity.ID,
		"$IDENTITY_CLIENT_ID", d.cloud.identity.ClientID,
		"$VAULT_URL", vaultURL,
		"$DEMO_IMAGE", demoImage,
	).Replace(string(text))
}
