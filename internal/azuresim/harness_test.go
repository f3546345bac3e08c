package azuresim_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

const (
	tenant       = "0a0a0a0a-0000-4000-8000-00000000000a"
	subscription = "11111111-2222-3333-4444-555555555555"
	nodeGroup    = "/subscriptions/" + subscription + "/resourceGroups/MC_nodes"
	userGroup    = "/subscriptions/" + subscription + "/resourceGroups/Apps"
	scaleSetName = "aks-pool1-vmss"
	scaleSetID   = nodeGroup + "/providers/Microsoft.Compute/virtualMachineScaleSets/" + scaleSetName
	vmName       = "aks-pool2-0"
	vmID         = nodeGroup + "/providers/Microsoft.Compute/virtualMachines/" + vmName
	demoID       = userGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"
	otherID      = userGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/other"
	foreignID    = "/subscriptions/" + subscription + "/resourceGroups/foreign/providers/Microsoft.ManagedIdentity/userAssignedIdentities/foreign"
	vaultID      = userGroup + "/providers/Microsoft.KeyVault/vaults/demo-vault"
	accountID    = userGroup + "/providers/Microsoft.Storage/storageAccounts/DemoAccount"
	micClientID  = "aaaaaaaa-0000-4000-8000-000000000001"
	micObjectID  = "aaaaaaaa-0000-4000-8000-000000000002"
	demoClientID = "bbbbbbbb-0000-4000-8000-000000000001"
	demoObjectID = "bbbbbbbb-0000-4000-8000-000000000002"
	vmAddr       = "127.0.9.1"
	secret       = model.Secret("correct horse battery staple")
)

// document is a small Azure: an application that may write the scale set and
// assign what is in Apps, two identities there, one that it may not assign, a
// scale set with a node, a virtual machine of its own that is one, a vault and a
// storage account that Demo may read.
func document() model.Document {
	return model.Document{
		Tenant: tenant,
		Identities: []model.Identity{
			{ID: demoID, ClientID: demoClientID, PrincipalID: demoObjectID}, {ID: otherID}, {ID: foreignID},
		},
		Applications:    []model.Application{{Name: "mic", ClientID: micClientID, PrincipalID: micObjectID, Secrets: []model.Secret{secret}}},
		ScaleSets:       []model.ScaleSet{{ID: scaleSetID, Location: "westeurope"}},
		VirtualMachines: []model.VirtualMachine{{ID: vmID}},
		Nodes: []model.Node{
			{Name: "node-0", ScaleSet: scaleSetID, Instance: 0, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
			{Name: "node-vm", VM: vmID, Prefixes: []netip.Prefix{netip.MustParsePrefix(vmAddr + "/32")}},
		},
		RoleAssignments: []model.RoleAssignment{
			{Principal: micObjectID, Role: "Virtual Machine Contributor", Scope: nodeGroup},
			{Principal: micObjectID, Role: "Managed Identity Operator", Scope: userGroup},
			{Principal: demoObjectID, Role: "Key Vault Secrets User", Scope: vaultID},
			{Principal: demoObjectID, Role: "Storage Blob Data Reader", Scope: accountID},
		},
		Vaults: []model.Vault{{ID: vaultID, Secrets: []model.VaultSecret{{Name: "greeting", Value: "hello"}}}},
		StorageAccounts: []model.StorageAccount{{ID: accountID, Containers: []model.Container{
			{Name: "greetings", Blobs: []model.Blob{{Name: "fr/bonjour.txt", Content: "bonjour"}, {Name: "en/day.txt", Content: "good day"}, {Name: "en/hi.txt"}}},
			{Name: "empty"},
		}}},
	}
}

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// azure is a simulator that runs for a test, and its clock.
type azure struct {
	*simtest.Sim
	clock *clock // nil: the real one
}

func start(t *testing.T, config azuresim.Config) *azure {
	t.Helper()
	return &azure{Sim: simtest.Start(t, config)}
}

func (a *azure) clientOptions() azcore.ClientOptions {
	return azcore.ClientOptions{Transport: a.Client(), Retry: policy.RetryOptions{MaxRetries: 1, RetryDelay: time.Millisecond}}
}

// withoutRetries is a context in which the SDK asks once.
func withoutRetries(t *testing.T) context.Context {
	t.Helper()
	return policy.WithRetryOptions(t.Context(), policy.RetryOptions{MaxRetries: -1})
}

// errorCode returns the code of the SDK's error for an answer of ARM or Key Vault.
func errorCode(t *testing.T, err error, status int) string {
	t.Helper()
	var response *azcore.ResponseError
	if !errors.As(err, &response) {
		t.Fatalf("got %v, want a ResponseError", err)
	}
	if response.StatusCode != status {
		t.Errorf("got status %d, want %d: %v", response.StatusCode, status, err)
	}
	return response.ErrorCode
}
