package render

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// SimulatorState is what is in Azure from the start: the nodes, and their own
// identity with the roles that the tutorial gives it.
func SimulatorState(lab topology.Lab) string {
	doc := model.Document{
		Tenant:     topology.Tenant,
		Identities: []model.Identity{{ID: topology.AgentPool, ClientID: topology.AgentPoolClientID, PrincipalID: topology.AgentPoolPrincipalID}},
		RoleAssignments: []model.RoleAssignment{
			{Principal: topology.AgentPoolPrincipalID, Role: "Virtual Machine Contributor", Scope: topology.NodeGroup},
			{Principal: topology.AgentPoolPrincipalID, Role: "Managed Identity Operator", Scope: topology.NodeGroup},
			{Principal: topology.AgentPoolPrincipalID, Role: "Managed Identity Operator", Scope: topology.IdentityGroup},
		},
	}
	for _, n := range lab.Nodes {
		addNode(&doc, n)
	}
	return toYAML(doc)
}

// addNode puts a node into Azure, with the virtual machine that it is or the
// scale set that it is an instance of.
func addNode(doc *model.Document, n topology.Node) {
	node := model.Node{Name: n.Name(), Prefixes: []netip.Prefix{netip.PrefixFrom(n.Addr(), n.Addr().BitLen()), n.Pods()}}
	resource := model.Resource{ID: n.Resource, UserAssigned: []string{topology.AgentPool}}
	if n.IsVM() {
		node.VM = n.Resource
		doc.VirtualMachines = append(doc.VirtualMachines, resource)
	} else {
		node.ScaleSet, node.Instance = n.Resource, n.Instance
		if !slices.ContainsFunc(doc.ScaleSets, func(s model.ScaleSet) bool { return s.ID == n.Resource }) {
			doc.ScaleSets = append(doc.ScaleSets, resource)
		}
	}
	doc.Nodes = append(doc.Nodes, node)
}

// HubFiles are the files of the simulated Azure, by path.
func HubFiles(lab topology.Lab, p Paths) map[string]string {
	return map[string]string{
		p.SimulatorState():                         SimulatorState(lab),
		filepath.Join(p.node(HubName), "Corefile"): hubCorefile(lab),
	}
}

// hubCorefile is Azure's DNS: the simulator's names and all below them lead to
// the simulator, and no other name exists.
func hubCorefile(lab topology.Lab) string {
	return fmt.Sprintf(`%s {
    errors
    template IN A {
        answer "{{ .Name }} 60 IN A %s"
    }
    template ANY ANY {
        rcode NOERROR
    }
}
. {
    errors
    template ANY ANY {
        rcode NXDOMAIN
    }
}
`, strings.Join(topology.AzureZones(), " "), lab.Hub())
}

// Firewall is the hub's netfilter rules, as nft reads them. The machine may ask
// the lab and gets answers, the lab may ask the machine nothing. The simulator's
// control API is for the machine only, the metadata service for nodes only.
func Firewall(lab topology.Lab) string {
	return fmt.Sprintf(`table ip lab {
	chain input {
		type filter hook input priority filter; policy accept;
		iifname != "%[1]s" ip daddr %[3]s drop
		iifname "%[1]s" ip daddr != { %[3]s, %[4]s } drop
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ip daddr %[3]s drop
		iifname "%[1]s" oifname "%[1]s" accept
		iifname "%[2]s" oifname "%[1]s" accept
		iifname "%[1]s" oifname "%[2]s" ct state established,related accept
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %[5]s oifname "%[1]s" masquerade
	}
}
`, topology.NodesBridge, topology.HostLink, topology.Metadata(), lab.Hub(), lab.Host())
}
