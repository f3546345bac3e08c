package armclient

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

// resources is ARM's API for one kind of resource in one subscription. The SDK
// has a client per kind, whose types say the same in other names; here they
// become one.
type resources interface {
	get(ctx context.Context, id armid.ID) (shown, error)
	// begin sends a change, or, if resume is not empty, sends nothing and goes on
	// with the one that it is the token of.
	begin(ctx context.Context, id armid.ID, change change, resume string) (poller, error)
}

// change is what a PATCH asks for.
type change struct {
	ifMatch *string
	block   identityBlock
}

// poller follows a change that ARM has accepted.
type poller interface {
	Poll(ctx context.Context) (*http.Response, error)
	Done() bool
	ResumeToken() (string, error)
	// result is of a change that is done. One that has succeeded is looked at for
	// it; one that has failed is an error.
	result(ctx context.Context) (shown, error)
}

// typedPoller makes one of the SDK's pollers a [poller].
type typedPoller[T any] struct {
	*runtime.Poller[T]
	show func(T) shown
}

func (p typedPoller[T]) result(ctx context.Context) (shown, error) {
	response, err := p.Result(ctx)
	return p.show(response), err
}

// shown is what ARM shows of a resource, as far as it is read here.
type shown struct {
	etag, provisioningState *string
	identity                *identityBlock // nil: none
}

// identityBlock is what is read and written of a resource's identity.
type identityBlock struct {
	kind *armcompute.ResourceIdentityType
	user map[string]*armcompute.UserAssignedIdentitiesValue
}

// newResources returns the API of the kind.
func newResources(kind compute.Kind, subscription string, credential azcore.TokenCredential, options *arm.ClientOptions) (resources, error) {
	switch kind {
	case compute.ScaleSet:
		client, err := armcompute.NewVirtualMachineScaleSetsClient(subscription, credential, options)
		return scaleSets{client}, err
	case compute.VirtualMachine:
		client, err := armcompute.NewVirtualMachinesClient(subscription, credential, options)
		return virtualMachines{client}, err
	}
	return nil, fmt.Errorf("a %q carries no identities", kind)
}

type scaleSets struct {
	client *armcompute.VirtualMachineScaleSetsClient
}

func (s scaleSets) get(ctx context.Context, id armid.ID) (shown, error) {
	response, err := s.client.Get(ctx, id.ResourceGroup(), id.Name(), nil)
	return shownScaleSet(response.VirtualMachineScaleSet), err
}

func (s scaleSets) begin(ctx context.Context, id armid.ID, change change, resume string) (poller, error) {
	update := armcompute.VirtualMachineScaleSetUpdate{
		Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: change.block.kind, UserAssignedIdentities: change.block.user},
	}
	out, err := s.client.BeginUpdate(ctx, id.ResourceGroup(), id.Name(), update,
		&armcompute.VirtualMachineScaleSetsClientBeginUpdateOptions{IfMatch: change.ifMatch, ResumeToken: resume})
	return typedPoller[armcompute.VirtualMachineScaleSetsClientUpdateResponse]{out, func(r armcompute.VirtualMachineScaleSetsClientUpdateResponse) shown {
		return shownScaleSet(r.VirtualMachineScaleSet)
	}}, err
}

func shownScaleSet(set armcompute.VirtualMachineScaleSet) shown {
	out := shown{etag: set.Etag}
	if set.Properties != nil {
		out.provisioningState = set.Properties.ProvisioningState
	}
	if set.Identity != nil {
		out.identity = &identityBlock{kind: set.Identity.Type, user: set.Identity.UserAssignedIdentities}
	}
	return out
}

type virtualMachines struct {
	client *armcompute.VirtualMachinesClient
}

func (v virtualMachines) get(ctx context.Context, id armid.ID) (shown, error) {
	response, err := v.client.Get(ctx, id.ResourceGroup(), id.Name(), nil)
	return shownVM(response.VirtualMachine), err
}

func (v virtualMachines) begin(ctx context.Context, id armid.ID, change change, resume string) (poller, error) {
	update := armcompute.VirtualMachineUpdate{
		Identity: &armcompute.VirtualMachineIdentity{Type: change.block.kind, UserAssignedIdentities: change.block.user},
	}
	out, err := v.client.BeginUpdate(ctx, id.ResourceGroup(), id.Name(), update,
		&armcompute.VirtualMachinesClientBeginUpdateOptions{IfMatch: change.ifMatch, ResumeToken: resume})
	return typedPoller[armcompute.VirtualMachinesClientUpdateResponse]{out, func(r armcompute.VirtualMachinesClientUpdateResponse) shown {
		return shownVM(r.VirtualMachine)
	}}, err
}

func shownVM(vm armcompute.VirtualMachine) shown {
	out := shown{etag: vm.Etag}
	if vm.Properties != nil {
		out.provisioningState = vm.Properties.ProvisioningState
	}
	if vm.Identity != nil {
		out.identity = &identityBlock{kind: vm.Identity.Type, user: vm.Identity.UserAssignedIdentities}
	}
	return out
}

// blockOf is the patch as ARM takes it.
func blockOf(patch *compute.Patch) identityBlock {
	block := identityBlock{kind: new(armcompute.ResourceIdentityType(patch.Type))}
	for id, add := range patch.Body() {
		if block.user == nil {
			block.user = map[string]*armcompute.UserAssignedIdentitiesValue{}
		}
		block.user[id.String()] = nil // null on the wire: removes
		if add {
			block.user[id.String()] = &armcompute.UserAssignedIdentitiesValue{}
		}
	}
	return block
}

// identities reads what is shown of the resource id.
func (s shown) identities(id armid.ID) (compute.Identities, error) {
	out := compute.Identities{Type: compute.TypeNone, Present: map[armid.ID]string{}, ETag: deref(s.etag)}
	switch state := deref(s.provisioningState); {
	case strings.EqualFold(state, "Deleting"):
		return compute.Identities{}, &DeletingError{ID: id}
	case strings.EqualFold(state, "Updating"), strings.EqualFold(state, "Creating"):
		out.Updating = true
	}
	if s.identity == nil {
		return out, nil
	}
	kind, known := compute.ParseIdentityType(string(deref(s.identity.kind)))
	if !known {
		return compute.Identities{}, fmt.Errorf("identity type %q of %s is unknown: nothing is changed there", kind, id)
	}
	out.Type = kind
	for key, value := range s.identity.user {
		user, err := armid.Parse(key)
		if err != nil {
			out.Unreadable = append(out.Unreadable, key)
			continue
		}
		out.Present[user] = ""
		if value != nil {
			out.Present[user] = deref(value.ClientID)
		}
	}
	return out, nil
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
