// Package compute names the Azure compute resources behind Kubernetes nodes and
// computes the change of identities that ARM is asked for.
//
// It is pure: a providerID or a set of identities in, a value out. It must not
// call ARM or know a Kubernetes client.
package compute

import (
	"fmt"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Resource types that carry managed identities, folded as [armid.ID.Type]
// returns them.
const (
	virtualMachineType   = "microsoft.compute/virtualmachines"
	scaleSetType         = "microsoft.compute/virtualmachinescalesets"
	scaleSetInstanceType = "microsoft.compute/virtualmachinescalesets/virtualmachines"
)

// Kind says which ARM API a [Ref] is served by.
type Kind string

// The kinds of compute resources that carry user-assigned identities. A node of
// a Flexible scale set is a [VirtualMachine]: its identities hang on the VM.
const (
	VirtualMachine Kind = "VirtualMachine"
	ScaleSet       Kind = "ScaleSet"
)

// ARMType is the kind's resource type as ARM spells it in the names of actions,
// such as Microsoft.Compute/virtualMachines/write; empty for an unknown kind.
func (k Kind) ARMType() string {
	switch k {
	case VirtualMachine:
		return "Microsoft.Compute/virtualMachines"
	case ScaleSet:
		return "Microsoft.Compute/virtualMachineScaleSets"
	}
	return ""
}

// Ref is the compute resource whose identities a node's pods share: the scale
// set that the node is an instance of, or the node's own virtual machine. It is
// comparable; equal Refs are one ARM resource.
type Ref struct {
	Kind Kind
	ID   armid.ID
}

// String returns the resource's folded ARM ID.
func (r Ref) String() string { return r.ID.String() }

// ParseRef reads the ARM ID of a virtual machine or a scale set.
func ParseRef(s string) (Ref, error) {
	id, err := armid.Parse(s)
	if err != nil {
		return Ref{}, err
	}
	return refOf(id)
}

// ParseProviderID reads a Node's spec.providerID, in any case:
//
//	azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/NAME/virtualMachines/N
//	azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/NAME
//
// Subscription and resource group come from it and never from configuration.
func ParseProviderID(providerID string) (Ref, error) {
	const scheme = "azure://"
	if providerID == "" {
		return Ref{}, fmt.Errorf("providerID is empty: the cloud provider has not initialised the node")
	}
	if len(providerID) < len(scheme) || !strings.EqualFold(providerID[:len(scheme)], scheme) {
		return Ref{}, fmt.Errorf("providerID %q is not of Azure: want azure:///subscriptions/…", providerID)
	}
	id, err := armid.Parse(providerID[len(scheme):])
	if err != nil {
		return Ref{}, fmt.Errorf("parsing providerID: %w", err)
	}
	return refOf(id)
}

func refOf(id armid.ID) (Ref, error) {
	switch id.Type() {
	case virtualMachineType:
		return Ref{Kind: VirtualMachine, ID: id}, nil
	case scaleSetType:
		return Ref{Kind: ScaleSet, ID: id}, nil
	case scaleSetInstanceType:
		parent, _ := id.Parent()
		return Ref{Kind: ScaleSet, ID: parent}, nil
	}
	return Ref{}, fmt.Errorf("%w: %s is neither a virtual machine nor a scale set", armid.ErrInvalid, id)
}
