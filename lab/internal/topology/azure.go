package topology

// What every lab's Azure is called. The GUIDs are made up.
const (
	Tenant       = "00000000-aaaa-4bbb-8ccc-dddddddddddd"
	Subscription = "11111111-2222-4333-8444-555555555555"
	// NodeResourceGroup is the resource group of the nodes; IdentityResourceGroup
	// that in which users make their identities.
	NodeResourceGroup     = "MC_lab"
	IdentityResourceGroup = "lab"

	// NodeGroup and IdentityGroup are the ARM IDs of the two groups.
	NodeGroup     = "/subscriptions/" + Subscription + "/resourceGroups/" + NodeResourceGroup
	IdentityGroup = "/subscriptions/" + Subscription + "/resourceGroups/" + IdentityResourceGroup

	// AgentPool is the identity of the nodes themselves, which is on each of them
	// from the start and which azure.json names.
	AgentPool            = NodeGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/lab-agentpool"
	AgentPoolClientID    = "22222222-3333-4444-8555-666666666666"
	AgentPoolPrincipalID = "33333333-4444-4555-8666-777777777777"
)

// AzureZones are the names, with all below them, that the simulated Azure
// answers to. Other names do not resolve inside a lab.
func AzureZones() []string {
	return []string{"login.microsoftonline.com", "management.azure.com", "vault.azure.net", "blob.core.windows.net"}
}
