package topology_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

func TestNodesDiffer(t *testing.T) {
	lab, err := topology.New(7, 6)
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Name, Layout, Proxy string
		RouteLocalnet       bool
		Addr, Pods          string
		ProviderID          string
	}
	vmss := "azure://" + topology.NodeGroup + "/providers/Microsoft.Compute/virtualMachineScaleSets/"
	want := []row{
		{"node1", "bridge", "iptables", true, "10.107.0.11", "10.107.101.0/24", vmss + "aks-pool1-12345678-vmss/virtualMachines/0"},
		{"node2", "ptp", "nftables", false, "10.107.0.12", "10.107.102.0/24", vmss + "aks-pool2-12345678-vmss/virtualMachines/0"},
		{"node3", "bridge", "iptables", true, "10.107.0.13", "10.107.103.0/24", "azure://" + topology.NodeGroup + "/providers/Microsoft.Compute/virtualMachines/aks-pool3-12345678-vm"},
		{"node4", "ptp", "nftables", false, "10.107.0.14", "10.107.104.0/24", vmss + "aks-pool2-12345678-vmss/virtualMachines/1"},
		{"node5", "bridge", "iptables", true, "10.107.0.15", "10.107.105.0/24", vmss + "aks-pool1-12345678-vmss/virtualMachines/1"},
		{"node6", "ptp", "nftables", false, "10.107.0.16", "10.107.106.0/24", vmss + "aks-pool2-12345678-vmss/virtualMachines/2"},
	}
	var got []row
	for _, n := range lab.Nodes {
		got = append(got, row{n.Name(), string(n.Layout), n.ProxyMode, n.RouteLocalnet, n.Addr().String(), n.Pods().String(), n.ProviderID()})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

func TestProviderIDsAreThoseOfAzure(t *testing.T) {
	lab, err := topology.New(0, topology.MaxNodes)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, n := range lab.Nodes {
		ref, err := compute.ParseRef(strings.TrimPrefix(n.ProviderID(), "azure://"))
		if err != nil {
			t.Errorf("%s: %v", n.Name(), err)
		}
		if (ref.Kind == compute.VirtualMachine) != n.IsVM() {
			t.Errorf("%s is a %s, IsVM says %v", n.Name(), ref.Kind, n.IsVM())
		}
		if seen[n.ProviderID()] {
			t.Errorf("%s has the providerID of another node", n.Name())
		}
		seen[n.ProviderID()] = true
	}
}

// TestAddressesAreApart holds for every lab that can be: no address is used
// twice, and none lies in another lab, among the services or outside.
func TestAddressesAreApart(t *testing.T) {
	owner := map[netip.Addr]string{}
	for number := range topology.MaxNumber + 1 {
		lab, err := topology.New(number, topology.MaxNodes)
		if err != nil {
			t.Fatal(err)
		}
		single := map[string]netip.Addr{"hub": lab.Hub(), "host": lab.Host(), "hub end": lab.HubEnd()}
		for _, n := range lab.Nodes {
			single[n.Name()] = n.Addr()
			if n.Pods().Overlaps(lab.Network()) || n.Pods().Contains(lab.Host()) {
				t.Errorf("lab %d: pods of %s overlap the nodes or the link to the machine", number, n.Name())
			}
			if !lab.PodRange().Contains(n.Pods().Addr()) {
				t.Errorf("lab %d: pods of %s are not in %s", number, n.Name(), lab.PodRange())
			}
		}
		for what, addr := range single {
			if other, used := owner[addr]; used {
				t.Errorf("%s of lab %d has the address of %s", what, number, other)
			}
			owner[addr] = what
			if !lab.Range().Contains(addr) {
				t.Errorf("%s of lab %d is outside its range", what, number)
			}
		}
		if lab.Range().Overlaps(topology.Services()) || lab.PodRange().Contains(lab.Hub()) {
			t.Errorf("lab %d: ranges overlap", number)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		number, nodes int
		want          string
	}{
		"a lab without nodes":        {0, 0, "planning a lab of 0 nodes: want 1 to 20"},
		"more nodes than addresses":  {0, 21, "planning a lab of 21 nodes: want 1 to 20"},
		"a negative number":          {-1, 1, "planning lab -1: want a number from 0 to 99"},
		"a number without addresses": {100, 1, "planning lab 100: want a number from 0 to 99"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := topology.New(c.number, c.nodes); err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
