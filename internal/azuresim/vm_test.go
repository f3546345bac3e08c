package azuresim_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

func TestVirtualMachineIsPatchedUntilDone(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	client := virtualMachines(t, a)
	before := getVM(t, client)
	if before.Identity != nil || *before.Type != "Microsoft.Compute/virtualMachines" || *before.ID != vmID || *before.Properties.VMID == "" {
		t.Errorf("a fresh virtual machine is %+v", before)
	}
	poller, err := client.BeginUpdate(t.Context(), "mc_NODES", strings.ToUpper(vmName), vmIdentities(demoID, otherID),
		&armcompute.VirtualMachinesClientBeginUpdateOptions{IfMatch: before.Etag})
	if err != nil {
		t.Fatal(err)
	}
	done, err := poller.PollUntilDone(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *done.Etag == *before.Etag || *done.Properties.ProvisioningState != "Succeeded" || *done.Identity.Type != userAssigned {
		t.Errorf("got etag %s, state %s, type %s", *done.Etag, *done.Properties.ProvisioningState, *done.Identity.Type)
	}
	want := []string{lowered(demoID), lowered(otherID)}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(done.Identity.UserAssignedIdentities))); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}
	if demo := done.Identity.UserAssignedIdentities[lowered(demoID)]; *demo.ClientID != demoClientID || *demo.PrincipalID != demoObjectID {
		t.Errorf("got client %s and principal %s", *demo.ClientID, *demo.PrincipalID)
	}
	if entry := patches(a)[0]; !slices.Equal(entry.Added, []string{demoID, otherID}) || entry.IfMatch != *before.Etag || entry.Principal != micObjectID {
		t.Errorf("the journal says %s: added %v, If-Match %s", entry, entry.Added, entry.IfMatch)
	}
	if set := a.State.Snapshot().ScaleSets[0]; set.ETag != `"1"` {
		t.Errorf("the scale set changed too: %+v", set)
	}
}

func TestVirtualMachinesIdentityIsUsableOnItsNodeAlone(t *testing.T) {
	clock := newClock()
	a := start(t, azuresim.Config{State: document(), ARMLatency: 15 * time.Second, Clock: clock.Now})
	client := virtualMachines(t, a)
	if _, err := client.BeginUpdate(t.Context(), "MC_nodes", vmName, vmIdentities(demoID), nil); err != nil {
		t.Fatal(err)
	}
	_, err := client.BeginUpdate(t.Context(), "MC_nodes", vmName, vmIdentities(otherID), nil)
	if code := errorCode(t, err, http.StatusConflict); code != "OperationNotAllowed" {
		t.Errorf("a second operation: got code %s", code)
	}
	if status, body := imdsFrom(t, a, vmAddr, demoClientID); status != http.StatusBadRequest {
		t.Errorf("before the end: got %d %s", status, body)
	}
	if got := *getVM(t, client).Properties.ProvisioningState; got != "Updating" {
		t.Errorf("provisioningState: got %s, want Updating", got)
	}
	clock.Advance(15 * time.Second)
	if status, body := imdsFrom(t, a, vmAddr, demoClientID); status != http.StatusOK {
		t.Errorf("after the end: got %d %s", status, body)
	}
	if status, _ := imds(t, a, demoClientID); status != http.StatusBadRequest {
		t.Errorf("the scale set's node: got %d, want 400", status)
	}
}

func TestVirtualMachineOperationThatFailsTakesThePatchBack(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, fault.Fault{
		Match:    fault.Match{Surface: journal.ARM, Method: http.MethodPatch, Path: vmID},
		Response: fault.Response{FailOperation: true, Code: "InternalOperationError", Message: "An internal error occurred."}, Times: 1,
	})
	client := virtualMachines(t, a)
	poller, err := client.BeginUpdate(t.Context(), "MC_nodes", vmName, vmIdentities(demoID), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = poller.PollUntilDone(t.Context(), nil)
	if code := errorCode(t, err, http.StatusOK); code != "InternalOperationError" {
		t.Errorf("got code %s", code)
	}
	if after := getVM(t, client); after.Identity != nil || *after.Properties.ProvisioningState != "Failed" {
		t.Errorf("got identity %v and state %s, want none and Failed", after.Identity, *after.Properties.ProvisioningState)
	}
}

func TestVirtualMachinePatchRefused(t *testing.T) {
	missing := demoID + "-gone"
	for name, test := range map[string]struct {
		roles   []model.RoleAssignment
		vm      string
		ifMatch *string
		patch   armcompute.VirtualMachineUpdate
		status  int
		code    string
		words   string
	}{
		"stale etag":       {nil, vmName, new(`"0"`), vmIdentities(demoID), 412, "PreconditionFailed", "of the resource '" + vmName + "'"},
		"missing identity": {nil, vmName, nil, vmIdentities(missing), 400, "FailedIdentityOperation", "Resource '" + lowered(missing) + "' was not found."},
		"identity not assignable": {nil, vmName, nil, vmIdentities(demoID, foreignID), 403, "LinkedAuthorizationFailed",
			"action 'Microsoft.Compute/virtualMachines/write' on scope '" + vmID + "'"},
		"no such virtual machine": {nil, "gone", nil, vmIdentities(demoID), 404, "ResourceNotFound", "'Microsoft.Compute/virtualMachines/gone' under resource group 'MC_nodes'"},
		"a scale set's name":      {nil, scaleSetName, nil, vmIdentities(demoID), 404, "ResourceNotFound", "'Microsoft.Compute/virtualMachines/" + scaleSetName + "'"},
		"user-assigned and empty": {nil, vmName, nil, vmIdentities(), 400, "InvalidParameter", "must not be null or empty"},
		"reader": {[]model.RoleAssignment{{Principal: micObjectID, Role: "Reader", Scope: nodeGroup}}, vmName, nil, vmIdentities(demoID), 403, "AuthorizationFailed",
			"action 'Microsoft.Compute/virtualMachines/write' over scope '" + vmID + "'"},
		"a role on the scale set": {[]model.RoleAssignment{{Principal: micObjectID, Role: "Owner", Scope: scaleSetID}}, vmName, nil, vmIdentities(demoID), 403, "AuthorizationFailed", "virtualMachines/write"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.RoleAssignments = append(doc.RoleAssignments, model.RoleAssignment{Principal: micObjectID, Role: "Reader", Scope: "/subscriptions/" + subscription})
			if test.roles != nil {
				doc.RoleAssignments = test.roles
			}
			a := start(t, azuresim.Config{State: doc})
			_, err := virtualMachines(t, a).BeginUpdate(t.Context(), "MC_nodes", test.vm, test.patch,
				&armcompute.VirtualMachinesClientBeginUpdateOptions{IfMatch: test.ifMatch})
			if code := errorCode(t, err, test.status); code != test.code {
				t.Errorf("got code %s, want %s", code, test.code)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("%v does not say %q", err, test.words)
			}
			if got := a.State.Snapshot().VirtualMachines[0]; got.ETag != `"1"` || got.ProvisioningState != "Succeeded" {
				t.Errorf("the refusal changed the virtual machine: %+v", got)
			}
		})
	}
}

func TestVirtualMachineIsReadWithARoleAlone(t *testing.T) {
	for name, test := range map[string]struct{ role, scope, code string }{
		"reader on it":                           {"Reader", vmID, ""},
		"virtual machine contributor":            {"Virtual Machine Contributor", nodeGroup, ""},
		"a role on the scale set is none on it":  {"Owner", scaleSetID, "AuthorizationFailed"},
		"the operator of identities reads no VM": {"Managed Identity Operator", nodeGroup, "AuthorizationFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.RoleAssignments = []model.RoleAssignment{{Principal: micObjectID, Role: test.role, Scope: test.scope}}
			a := start(t, azuresim.Config{State: doc})
			_, err := virtualMachines(t, a).Get(t.Context(), "MC_nodes", vmName, nil)
			wantCode(t, "GET", err, test.code)
		})
	}
}

func TestInstanceRouteDescribesAVirtualMachine(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	req := newRequest(t, http.MethodGet, imdsURL+"/metadata/instance/compute?api-version=2021-02-01", "")
	req.Header.Set("Metadata", "true")
	_, body := request(t, a.ClientFrom(t, netip.MustParseAddr(vmAddr)), req)
	var got map[string]string
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"azEnvironment": "AzurePublicCloud", "location": "westeurope", "osType": "Linux", "provider": "Microsoft.Compute",
		"name": vmName, "resourceGroupName": "mc_nodes", "resourceId": vmID, "subscriptionId": subscription,
		"vmId": *getVM(t, virtualMachines(t, a)).Properties.VMID, "vmScaleSetName": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("compute (-want +got):\n%s", diff)
	}
}

func TestVirtualMachineThroughTheControlAPI(t *testing.T) {
	a := start(t, azuresim.Config{})
	c, ctx := a.ControlClient(), t.Context()
	identity, err := c.AddIdentity(ctx, model.Identity{ID: demoID})
	check(t, err)
	added, err := c.AddVirtualMachine(ctx, model.VirtualMachine{ID: vmID, SystemAssigned: &model.SystemAssigned{}})
	check(t, err)
	_, err = c.AddNode(ctx, model.Node{Name: "node-vm", VM: vmID, Prefixes: []netip.Prefix{netip.MustParsePrefix(vmAddr + "/32")}})
	check(t, err)
	check(t, c.AttachToVM(ctx, strings.ToUpper(vmID), demoID))
	if added.Location != "westeurope" || added.SystemAssigned.PrincipalID == "" || added.ETag != `"1"` {
		t.Errorf("got %+v", added)
	}
	if status, body := imdsFrom(t, a, vmAddr, identity.ClientID); status != http.StatusOK {
		t.Errorf("got %d %s", status, body)
	}
	doc, err := c.State(ctx)
	check(t, err)
	if got := doc.VirtualMachines[0].UserAssigned; len(doc.ScaleSets) != 0 || len(got) != 1 || got[0] != lowered(demoID) {
		t.Errorf("got %+v", doc)
	}
}

func virtualMachines(t *testing.T, a *azure) *armcompute.VirtualMachinesClient {
	t.Helper()
	credential, err := azidentity.NewClientSecretCredential(tenant, micClientID, string(secret),
		&azidentity.ClientSecretCredentialOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	client, err := armcompute.NewVirtualMachinesClient(subscription, credential, &arm.ClientOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func getVM(t *testing.T, client *armcompute.VirtualMachinesClient) armcompute.VirtualMachine {
	t.Helper()
	got, err := client.Get(t.Context(), "MC_nodes", vmName, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.VirtualMachine
}

func vmIdentities(ids ...string) armcompute.VirtualMachineUpdate {
	of := identities(userAssigned, ids...).Identity
	return armcompute.VirtualMachineUpdate{Identity: &armcompute.VirtualMachineIdentity{Type: of.Type, UserAssignedIdentities: of.UserAssignedIdentities}}
}
