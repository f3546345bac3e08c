// Package topology says what a lab looks like: its addresses, its nodes and how
// they differ, and what each is in Azure.
//
// It is pure: the number of a lab and of its nodes decide everything. It must
// not make any of it; that is for the packages above.
package topology

import (
	"fmt"
	"net/netip"
)

// The limits of the address plan.
const (
	// MaxNumber is the highest number of a lab; the lowest is 0.
	MaxNumber = 99
	// MaxNodes is how many nodes a lab may have.
	MaxNodes = 20
)

// The links in the namespaces of a lab.
const (
	// NodesBridge is the bridge in the hub that all nodes are on.
	NodesBridge = "nodes"
	// HostLink is the hub's end of the link to the machine.
	HostLink = "host"
	// NodeLink is the one link of a node to the outside.
	NodeLink = "eth0"
)

// Layout is how a node links its pods.
type Layout string

// The two layouts.
const (
	// Bridge puts all pods of a node on one bridge.
	Bridge Layout = "bridge"
	// PointToPoint gives each pod a link of its own, as on AKS.
	PointToPoint Layout = "ptp"
)

// Lab is the plan of one lab.
type Lab struct {
	// Number sets this lab apart from others on the machine: 0 to [MaxNumber].
	Number int
	// Nodes are the plan of each node, in order.
	Nodes []Node
}

// Node is the plan of one node.
type Node struct {
	lab int
	// Number counts from 1.
	Number int
	// Layout is how the node links its pods.
	Layout Layout
	// ProxyMode is that of kube-proxy: iptables or nftables.
	ProxyMode string
	// RouteLocalnet says whether kube-proxy opens 127.0.0.0/8 to packets from
	// other links, as its iptables mode does where nobody forbids it.
	RouteLocalnet bool
	// Resource is the ARM ID of the scale set or virtual machine that the node
	// is, or is an instance of.
	Resource string
	// Instance is the number in the scale set; -1 for a virtual machine.
	Instance int
}

// New plans a lab of a number of nodes.
func New(number, nodes int) (Lab, error) {
	if number < 0 || number > MaxNumber {
		return Lab{}, fmt.Errorf("planning lab %d: want a number from 0 to %d", number, MaxNumber)
	}
	if nodes < 1 || nodes > MaxNodes {
		return Lab{}, fmt.Errorf("planning a lab of %d nodes: want 1 to %d", nodes, MaxNodes)
	}
	lab := Lab{Number: number}
	for i := 1; i <= nodes; i++ {
		lab.Nodes = append(lab.Nodes, plan(number, i))
	}
	return lab, nil
}

// plan lets the nodes differ: odd ones have a bridge and kube-proxy's iptables
// rules, even ones point-to-point links and its nftables rules, and nothing on
// them sets route_localnet. The third is a virtual machine, all others are
// instances of two scale sets.
func plan(lab, i int) Node {
	n := Node{lab: lab, Number: i, Layout: Bridge, ProxyMode: "iptables", RouteLocalnet: true}
	if i%2 == 0 {
		n.Layout, n.ProxyMode, n.RouteLocalnet = PointToPoint, "nftables", false
	}
	if i == 3 {
		n.Resource, n.Instance = NodeGroup+"/providers/Microsoft.Compute/virtualMachines/aks-pool3-12345678-vm", -1
		return n
	}
	pool := 2 - i%2
	n.Resource = fmt.Sprintf("%s/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool%d-12345678-vmss", NodeGroup, pool)
	if n.Instance = (i - pool) / 2; pool == 1 && i > 3 {
		n.Instance-- // node 3 is no instance
	}
	return n
}

// IsVM reports whether the node is a virtual machine of its own.
func (n Node) IsVM() bool { return n.Instance < 0 }

// ProviderID is spec.providerID of the node.
func (n Node) ProviderID() string {
	if n.IsVM() {
		return "azure://" + n.Resource
	}
	return fmt.Sprintf("azure://%s/virtualMachines/%d", n.Resource, n.Instance)
}

// Name is the node's name in Kubernetes.
func (n Node) Name() string { return fmt.Sprintf("node%d", n.Number) }

// Cgroup is the name of the node's directory at the top of every cgroup
// hierarchy of the machine.
func (n Node) Cgroup() string { return fmt.Sprintf("lab%d-node%d", n.lab, n.Number) }

// Addr is the node's own address.
func (n Node) Addr() netip.Addr { return at(n.lab, 0, 10+n.Number) }

// Pods is the range of the node's pods.
func (n Node) Pods() netip.Prefix { return netip.PrefixFrom(at(n.lab, 100+n.Number, 0), 24) }

// HubCgroup is what [Node.Cgroup] is, for the simulated Azure.
func (l Lab) HubCgroup() string { return fmt.Sprintf("lab%d-azure", l.Number) }

// Link is the name of the one link of the lab in the machine's own network
// namespace. It is also what claims the number.
func (l Lab) Link() string { return LinkName(l.Number) }

// LinkName is [Lab.Link] of the lab with a number.
func LinkName(number int) string { return fmt.Sprintf("lab%d", number) }

// Range holds every address of the lab but those of [Services].
func (l Lab) Range() netip.Prefix { return Range(l.Number) }

// Range is [Lab.Range] of the lab with a number.
func Range(number int) netip.Prefix { return netip.PrefixFrom(at(number, 0, 0), 16) }

// Network is the virtual network of the nodes.
func (l Lab) Network() netip.Prefix { return netip.PrefixFrom(at(l.Number, 0, 0), 24) }

// PodRange holds the pods of all nodes, and nothing else.
func (l Lab) PodRange() netip.Prefix { return netip.PrefixFrom(at(l.Number, 96, 0), 19) }

// Hub is the address of the simulated Azure: ARM, Entra, Key Vault, Blob and
// DNS. It is the router between the lab and the machine as well.
func (l Lab) Hub() netip.Addr { return at(l.Number, 0, 1) }

// Host and HubEnd are the two ends of the link to the machine.
func (l Lab) Host() netip.Addr { return at(l.Number, 254, 0) }

// HubEnd is the end of the link to the machine that is the simulator's. Its
// control API serves there, where no node has a route to.
func (l Lab) HubEnd() netip.Addr { return at(l.Number, 254, 1) }

// API is the address of the API server, on the first node.
func (l Lab) API() netip.Addr { return l.Nodes[0].Addr() }

// Metadata is the address of the instance metadata service.
func Metadata() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 169, 254}) }

// Services is the range of the cluster's services, the same in every lab: it
// never leaves a node.
func Services() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, 0, 0}), 16) }

// ServiceAPI is the cluster's address of the API server.
func ServiceAPI() netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, 1}) }

// ServiceDNS is the cluster's address of its DNS.
func ServiceDNS() netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, 10}) }

func at(lab, third, fourth int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(100 + lab), byte(third), byte(fourth)}) //nolint:gosec // all below 256, by New
}
