package world

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"

	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

const (
	tenant        = "00000000-aaaa-4bbb-8ccc-dddddddddddd"
	subscription  = "11111111-2222-4333-8444-555555555555"
	nodeGroup     = "/subscriptions/" + subscription + "/resourceGroups/MC_demo"
	identityGroup = "/subscriptions/" + subscription + "/resourceGroups/demo"
	vaultName     = "demo-vault"
	vaultID       = identityGroup + "/providers/Microsoft.KeyVault/vaults/" + vaultName

	// VaultURL is the vault that holds the secret "demo".
	VaultURL = "https://" + vaultName + ".vault.azure.net"
	// SecretValue is the value of the secret "demo".
	SecretValue = "it works, and nobody was given a password"
)

// Cloud is what exists in the simulated Azure.
type Cloud struct {
	// Cluster is the identity of the nodes themselves, which MIC uses. It is on
	// every scale set from the start.
	Cluster model.Identity
	// Demo may read the secret.
	Demo model.Identity
	// Other exists and may read nothing.
	Other model.Identity
}

func scaleSetID(node int) string {
	return fmt.Sprintf("%s/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool%d-12345678-vmss", nodeGroup, node)
}

// ScaleSetID returns the ARM ID of the scale set that the node is an instance of.
func (n *Node) ScaleSetID() string { return scaleSetID(n.number) }

// furnish makes a scale set per node, three identities, their roles and a vault.
func (w *World) furnish(ctx context.Context) error {
	doc := model.Document{
		Tenant: tenant,
		Vaults: []model.Vault{{ID: vaultID, Secrets: []model.VaultSecret{{Name: "demo", Value: SecretValue}}}},
	}
	for _, n := range w.Nodes {
		doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: n.ScaleSetID()})
		doc.Nodes = append(doc.Nodes, model.Node{Name: n.Name, ScaleSet: n.ScaleSetID(), Prefixes: []netip.Prefix{n.PodCIDR, host(n.Addr)}})
	}
	if err := w.Sim.Replace(ctx, doc); err != nil {
		return fmt.Errorf("loading the simulator: %w", err)
	}
	for name, identity := range map[string]*model.Identity{"cluster-agentpool": &w.Cloud.Cluster, "demo1": &w.Cloud.Demo, "other": &w.Cloud.Other} {
		var err error
		if *identity, err = w.AddIdentity(ctx, name); err != nil {
			return err
		}
	}
	for _, n := range w.Nodes {
		if err := w.Sim.Attach(ctx, n.ScaleSetID(), w.Cloud.Cluster.ID); err != nil {
			return fmt.Errorf("attaching the cluster's identity: %w", err)
		}
	}
	for _, assignment := range []model.RoleAssignment{
		{Principal: w.Cloud.Cluster.PrincipalID, Role: "Virtual Machine Contributor", Scope: nodeGroup},
		{Principal: w.Cloud.Cluster.PrincipalID, Role: "Managed Identity Operator", Scope: identityGroup},
		{Principal: w.Cloud.Demo.PrincipalID, Role: "Key Vault Secrets User", Scope: vaultID},
	} {
		if _, err := w.Sim.AssignRole(ctx, assignment); err != nil {
			return fmt.Errorf("assigning the role %s: %w", assignment.Role, err)
		}
	}
	return nil
}

// AddIdentity makes a managed identity in Azure.
func (w *World) AddIdentity(ctx context.Context, name string) (model.Identity, error) {
	identity, err := w.Sim.AddIdentity(ctx, model.Identity{ID: identityGroup + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name})
	if err != nil {
		return model.Identity{}, fmt.Errorf("making identity %s: %w", name, err)
	}
	return identity, nil
}

// MIC is the controller in its pod.
type MIC struct {
	*Process
	Pod *Pod
}

// The ports of MIC in its pod.
const micProbePort = "8080"

// StartMIC runs MIC in a pod of a node, as AKS does: its azure.json says
// useManagedIdentityExtension, so its own token comes through NMI of that node,
// by the exception.
func (w *World) StartMIC(ctx context.Context, on *Node, flags ...string) (*MIC, error) {
	object := NewPod(SystemNamespace, "mic-0", map[string]string{"app.kubernetes.io/component": "mic"})
	object.Spec.ServiceAccountName = micAccount
	pod, err := on.Run(ctx, object)
	if err != nil {
		return nil, err
	}
	m := &MIC{Pod: pod}
	if m.Process, err = w.LaunchMIC(ctx, pod, w.azureJSON(nil), flags...); err != nil {
		return nil, err
	}
	return m, m.Await(ctx)
}

// LaunchMIC starts MIC in a pod with an azure.json and waits for nothing.
func (w *World) LaunchMIC(ctx context.Context, pod *Pod, cloudConfig map[string]any, flags ...string) (*Process, error) {
	kubeconfig, err := w.kubeconfig(ctx, micAccount, pod.Object.Name)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(cloudConfig)
	if err != nil {
		return nil, fmt.Errorf("encoding azure.json: %w", err)
	}
	file := w.path(pod.Object.Name + "-azure.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("writing azure.json: %w", err)
	}
	return w.start(ctx, command{
		name: pod.Object.Name, ns: pod.NS, path: w.program("mic"),
		args: append([]string{"--kubeconfig=" + kubeconfig, "--cloudconfig=" + file, "--http-probe-port=" + micProbePort, "-v=5"}, flags...),
		env:  []string{"MIC_POD_NAMESPACE=" + SystemNamespace},
	})
}

// azureJSON is the file that AKS leaves on its nodes, with edits.
func (w *World) azureJSON(edits map[string]any) map[string]any {
	out := map[string]any{
		"cloud": "AzurePublicCloud", "tenantId": tenant, "subscriptionId": subscription, "resourceGroup": "MC_demo", "vmType": "vmss",
		"aadClientId": "msi", "aadClientSecret": "msi",
		"useManagedIdentityExtension": true, "userAssignedIdentityID": w.Cloud.Cluster.ClientID,
	}
	maps.Copy(out, edits)
	return out
}

// Await waits until MIC says that it is ready.
func (m *MIC) Await(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: m.Pod.NS.DialContext, DisableKeepAlives: true}}
	return await(ctx, "MIC", m.whileRunning(func() error { return expectOK(ctx, client, "http://127.0.0.1:"+micProbePort+"/readyz") }))
}

// Stop deletes MIC's pod after its process has ended.
func (m *MIC) Stop(ctx context.Context) error {
	if err := m.Close(); err != nil {
		return err
	}
	return m.Pod.SetStatus(ctx, corev1.PodFailed)
}
