package azuresim_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// lowered is the ID as the simulator answers it.
func lowered(id string) string { return strings.Replace(id, "resourceGroups", "resourcegroups", 1) }

func TestScaleSetIsPatchedUntilDone(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	client := scaleSets(t, a)
	before := getScaleSet(t, client)
	if before.Identity != nil {
		t.Errorf("a fresh scale set has the identity %v", before.Identity)
	}
	poller, err := client.BeginUpdate(t.Context(), "mc_NODES", strings.ToUpper(scaleSetName), identities(armcompute.ResourceIdentityTypeUserAssigned, demoID, otherID),
		&armcompute.VirtualMachineScaleSetsClientBeginUpdateOptions{IfMatch: before.Etag})
	if err != nil {
		t.Fatal(err)
	}
	done, err := poller.PollUntilDone(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *done.Etag == *before.Etag {
		t.Errorf("the etag is still %s", *done.Etag)
	}
	if got := *done.Properties.ProvisioningState; got != "Succeeded" {
		t.Errorf("provisioningState: got %s", got)
	}
	want := []string{lowered(demoID), lowered(otherID)}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(done.Identity.UserAssignedIdentities))); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}
	demo := done.Identity.UserAssignedIdentities[lowered(demoID)]
	if *demo.ClientID != demoClientID || *demo.PrincipalID != demoObjectID {
		t.Errorf("got client %s and principal %s", *demo.ClientID, *demo.PrincipalID)
	}
	entry := patches(a)[0]
	entry = journal.Entry{Added: entry.Added, Removed: entry.Removed, IfMatch: entry.IfMatch, Principal: entry.Principal, Status: entry.Status}
	if diff := cmp.Diff(journal.Entry{Added: []string{demoID, otherID}, IfMatch: *before.Etag, Principal: micObjectID, Status: 200}, entry, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

func TestIdentityIsUsableOnlyWhenTheOperationHasSucceeded(t *testing.T) {
	clock := newClock()
	a := start(t, azuresim.Config{State: document(), ARMLatency: 42 * time.Second, Clock: clock.Now})
	client := scaleSets(t, a)
	poller := beginUpdate(t, client, identities(armcompute.ResourceIdentityTypeUserAssigned, demoID))
	if status, body := imds(t, a, demoClientID); status != http.StatusBadRequest {
		t.Errorf("before the end: got %d %s", status, body)
	}
	if got := *getScaleSet(t, client).Properties.ProvisioningState; got != "Updating" {
		t.Errorf("provisioningState: got %s, want Updating", got)
	}
	clock.Advance(41 * time.Second)
	resp := poll(t, poller)
	if poller.Done() || resp.Header.Get("Retry-After") != "10" {
		t.Errorf("done %v, Retry-After %q, want a wait of 10 seconds", poller.Done(), resp.Header.Get("Retry-After"))
	}
	clock.Advance(time.Second)
	if poll(t, poller); !poller.Done() {
		t.Fatal("the operation is not done when its time has come")
	}
	if _, err := poller.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, body := imds(t, a, demoClientID); status != http.StatusOK {
		t.Errorf("after the end: got %d %s", status, body)
	}
}

func TestRemovedIdentityIsUsableUntilTheOperationHasSucceeded(t *testing.T) {
	clock := newClock()
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID, otherID}
	a := start(t, azuresim.Config{State: doc, ARMLatency: time.Minute, Clock: clock.Now})
	patch := identities(armcompute.ResourceIdentityTypeUserAssigned)
	patch.Identity.UserAssignedIdentities = map[string]*armcompute.UserAssignedIdentitiesValue{strings.ToLower(demoID): nil}
	beginUpdate(t, scaleSets(t, a), patch)
	if status, _ := imds(t, a, demoClientID); status != http.StatusOK {
		t.Errorf("before the end: got %d, want 200", status)
	}
	clock.Advance(time.Minute)
	if status, _ := imds(t, a, demoClientID); status != http.StatusBadRequest {
		t.Errorf("after the end: got %d, want 400", status)
	}
	if diff := cmp.Diff([]string{strings.ToLower(demoID)}, patches(a)[0].Removed); diff != "" {
		t.Errorf("journal's removed (-want +got):\n%s", diff)
	}
}

func TestOperationThatFailsTakesThePatchBack(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, fault.Fault{
		Match:    fault.Match{Surface: journal.ARM, Method: http.MethodPatch},
		Response: fault.Response{FailOperation: true, Code: "InternalOperationError", Message: "An internal error occurred."}, Times: 1,
	})
	client := scaleSets(t, a)
	poller := beginUpdate(t, client, identities(armcompute.ResourceIdentityTypeUserAssigned, demoID))
	_, err := poller.PollUntilDone(t.Context(), nil)
	if code := errorCode(t, err, http.StatusOK); code != "InternalOperationError" {
		t.Errorf("got code %s", code)
	}
	after := getScaleSet(t, client)
	if after.Identity != nil || *after.Properties.ProvisioningState != "Failed" {
		t.Errorf("got identity %v and state %s, want none and Failed", after.Identity, *after.Properties.ProvisioningState)
	}
	if status, _ := imds(t, a, demoClientID); status != http.StatusBadRequest {
		t.Errorf("IMDS: got %d, want 400", status)
	}
}

func TestPatchRefused(t *testing.T) {
	many := make([]string, 151)
	for i := range many {
		many[i] = fmt.Sprintf("%s-%d", demoID, i)
	}
	missing := demoID + "-gone"
	for name, test := range map[string]struct {
		scaleSet string
		ifMatch  *string
		patch    armcompute.VirtualMachineScaleSetUpdate
		status   int
		code     string
		words    string
	}{
		"stale etag":          {scaleSetName, new(`"0"`), identities(userAssigned, demoID), 412, "PreconditionFailed", `does not match the etag '\"1\"'`},
		"etag without quotes": {scaleSetName, new(`1`), identities(userAssigned, demoID), 412, "PreconditionFailed", `does not match the etag '\"1\"'`},
		"missing identity":    {scaleSetName, nil, identities(userAssigned, demoID, missing), 400, "FailedIdentityOperation", "Resource '" + lowered(missing) + "' was not found."},
		"two missing":         {scaleSetName, nil, identities(userAssigned, missing, missing+"2"), 400, "FailedIdentityOperation", "'" + lowered(missing) + "," + lowered(missing) + "2'"},
		"identity not assignable": {scaleSetName, nil, identities(userAssigned, demoID, foreignID), 403, "LinkedAuthorizationFailed",
			"on the linked scope(s) '" + lowered(foreignID) + "' (respectively)"},
		"no such scale set":          {"gone", nil, identities(userAssigned, demoID), 404, "ResourceNotFound", "'Microsoft.Compute/virtualMachineScaleSets/gone' under resource group 'MC_nodes'"},
		"151 identities":             {scaleSetName, nil, identities(userAssigned, many...), 400, "InvalidParameter", "The maximum is 150"},
		"user-assigned and empty":    {scaleSetName, nil, identities(userAssigned), 400, "InvalidParameter", "must not be null or empty"},
		"system-assigned with a map": {scaleSetName, nil, identities(armcompute.ResourceIdentityTypeSystemAssigned, demoID), 400, "InvalidParameter", `should not be provided if the type is \"SystemAssigned\"`},
		"none with a map":            {scaleSetName, nil, identities(armcompute.ResourceIdentityTypeNone, demoID), 400, "InvalidParameter", "should not be provided"},
		"no type":                    {scaleSetName, nil, armcompute.VirtualMachineScaleSetUpdate{Identity: &armcompute.VirtualMachineScaleSetIdentity{}}, 400, "InvalidParameter", "Type must be provided"},
		"an ID that is none":         {scaleSetName, nil, identities(userAssigned, "/subscriptions/x"), 400, "InvalidIdentityValues", "'/subscriptions/x'"},
		"one identity twice":         {scaleSetName, nil, identities(userAssigned, demoID, strings.ToLower(demoID)), 400, "InvalidIdentityValues", "more than once"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.RoleAssignments = append(doc.RoleAssignments, model.RoleAssignment{Principal: micObjectID, Role: "Reader", Scope: "/subscriptions/" + subscription})
			a := start(t, azuresim.Config{State: doc})
			_, err := scaleSets(t, a).BeginUpdate(t.Context(), "MC_nodes", test.scaleSet, test.patch,
				&armcompute.VirtualMachineScaleSetsClientBeginUpdateOptions{IfMatch: test.ifMatch})
			if code := errorCode(t, err, test.status); code != test.code {
				t.Errorf("got code %s, want %s", code, test.code)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("%v does not say %q", err, test.words)
			}
			if entry := patches(a)[0]; entry.Code != test.code || entry.Status != test.status {
				t.Errorf("the journal says %s", entry)
			}
			if got := a.State.Snapshot().ScaleSets[0]; got.ETag != `"1"` || got.ProvisioningState != "Succeeded" {
				t.Errorf("the refusal changed the scale set: %+v", got)
			}
		})
	}
}

const userAssigned = armcompute.ResourceIdentityTypeUserAssigned

func TestSecondPatchMeetsTheFirst(t *testing.T) {
	clock := newClock()
	a := start(t, azuresim.Config{State: document(), ARMLatency: time.Minute, Clock: clock.Now})
	client := scaleSets(t, a)
	beginUpdate(t, client, identities(userAssigned, demoID))
	_, err := client.BeginUpdate(t.Context(), "MC_nodes", scaleSetName, identities(userAssigned, otherID), nil)
	if code := errorCode(t, err, http.StatusConflict); code != "OperationNotAllowed" {
		t.Errorf("got code %s", code)
	}
	clock.Advance(time.Minute)
	beginUpdate(t, client, identities(userAssigned, otherID))
}

func TestRolesDecide(t *testing.T) {
	const write = "Microsoft.Compute/virtualMachineScaleSets/write"
	for name, test := range map[string]struct {
		role, scope string
		read, patch string // the code of the refusal; empty: allowed
	}{
		"no role":                         {"", "", "AuthorizationFailed", "AuthorizationFailed"},
		"reader":                          {"Reader", nodeGroup, "", "AuthorizationFailed"},
		"virtual machine contributor":     {"Virtual Machine Contributor", nodeGroup, "", "LinkedAuthorizationFailed"},
		"on the scale set alone":          {"Virtual Machine Contributor", scaleSetID, "", "LinkedAuthorizationFailed"},
		"contributor of the node group":   {"Contributor", nodeGroup, "", "LinkedAuthorizationFailed"},
		"contributor of the subscription": {"Contributor", "/subscriptions/" + subscription, "", ""},
		"owner, in another case":          {"OWNER", strings.ToUpper("/subscriptions/" + subscription), "", ""},
		"operator of the identities":      {"Managed Identity Operator", userGroup, "AuthorizationFailed", "AuthorizationFailed"},
		"a group whose name begins alike": {"Owner", nodeGroup + "-2", "AuthorizationFailed", "AuthorizationFailed"},
		"a name that begins the group's":  {"Owner", nodeGroup[:len(nodeGroup)-1], "AuthorizationFailed", "AuthorizationFailed"},
		"another resource in the group":   {"Owner", scaleSetID + "2", "AuthorizationFailed", "AuthorizationFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.RoleAssignments = nil
			if test.role != "" {
				doc.RoleAssignments = []model.RoleAssignment{{Principal: micObjectID, Role: test.role, Scope: test.scope}}
			}
			a := start(t, azuresim.Config{State: doc})
			client := scaleSets(t, a)
			_, err := client.Get(t.Context(), "MC_nodes", scaleSetName, nil)
			wantCode(t, "GET", err, test.read)
			_, err = client.BeginUpdate(t.Context(), "MC_nodes", scaleSetName, identities(userAssigned, demoID), nil)
			wantCode(t, "PATCH", err, test.patch)
			if test.patch == "AuthorizationFailed" && !strings.Contains(err.Error(), "action '"+write+"' over scope '"+scaleSetID+"'") {
				t.Errorf("%v does not name the action and scope", err)
			}
		})
	}
}

func wantCode(t *testing.T, verb string, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("%s: %v", verb, err)
		}
		return
	}
	if got := errorCode(t, err, http.StatusForbidden); got != want {
		t.Errorf("%s: got %s, want %s", verb, got, want)
	}
}

func TestIdentityTypes(t *testing.T) {
	for name, test := range map[string]struct {
		system bool
		start  []string
		kind   armcompute.ResourceIdentityType
		change map[string]*armcompute.UserAssignedIdentitiesValue
		want   *armcompute.ResourceIdentityType
		left   []string
	}{
		"the first one": {false, nil, userAssigned, map[string]*armcompute.UserAssignedIdentitiesValue{demoID: {}}, new(userAssigned), []string{demoID}},
		"one more beside the system-assigned": {true, []string{demoID}, armcompute.ResourceIdentityTypeSystemAssignedUserAssigned,
			map[string]*armcompute.UserAssignedIdentitiesValue{otherID: {}}, to.Ptr(armcompute.ResourceIdentityTypeSystemAssignedUserAssigned), []string{demoID, otherID}},
		"one of two goes":                {false, []string{demoID, otherID}, userAssigned, map[string]*armcompute.UserAssignedIdentitiesValue{demoID: nil}, new(userAssigned), []string{otherID}},
		"the last goes with type None":   {false, []string{demoID}, armcompute.ResourceIdentityTypeNone, nil, nil, nil},
		"the last goes, named":           {false, []string{demoID}, armcompute.ResourceIdentityTypeNone, map[string]*armcompute.UserAssignedIdentitiesValue{demoID: nil}, nil, nil},
		"only the system-assigned stays": {true, []string{demoID}, armcompute.ResourceIdentityTypeSystemAssigned, nil, to.Ptr(armcompute.ResourceIdentityTypeSystemAssigned), nil},
		"the system-assigned is made":    {false, nil, armcompute.ResourceIdentityTypeSystemAssigned, nil, to.Ptr(armcompute.ResourceIdentityTypeSystemAssigned), nil},
		"the system-assigned goes":       {true, []string{demoID}, userAssigned, map[string]*armcompute.UserAssignedIdentitiesValue{demoID: {}}, new(userAssigned), []string{demoID}},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.ScaleSets[0].UserAssigned = test.start
			if test.system {
				doc.ScaleSets[0].SystemAssigned = &model.SystemAssigned{}
			}
			a := start(t, azuresim.Config{State: doc})
			client := scaleSets(t, a)
			poller := beginUpdate(t, client, armcompute.VirtualMachineScaleSetUpdate{
				Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: &test.kind, UserAssignedIdentities: test.change},
			})
			if _, err := poller.PollUntilDone(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			got := getScaleSet(t, client).Identity
			if test.want == nil {
				if got != nil {
					t.Errorf("got %+v, want no identity", got)
				}
				return
			}
			if *got.Type != *test.want || (got.PrincipalID != nil) != (*test.want != userAssigned) {
				t.Errorf("got type %s with principal %v, want %s", *got.Type, got.PrincipalID, *test.want)
			}
			var left []string
			for id := range got.UserAssignedIdentities {
				left = append(left, strings.Replace(id, "resourcegroups", "resourceGroups", 1))
			}
			slices.Sort(left)
			if diff := cmp.Diff(test.left, left); diff != "" {
				t.Errorf("identities (-want +got):\n%s", diff)
			}
		})
	}
}

func TestThrottledCallIsRetriedByTheSDK(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, fault.Fault{
		Match:    fault.Match{Surface: journal.ARM, Path: strings.ToUpper(scaleSetID)},
		Response: fault.Response{Status: 429, Code: "TooManyRequests", Message: "slow down", Headers: map[string]string{"Retry-After": "1"}}, Times: 1,
	})
	getScaleSet(t, scaleSets(t, a))
	var statuses []int
	for _, e := range a.Journal.Since(0) {
		if e.Surface == journal.ARM {
			statuses = append(statuses, e.Status)
		}
	}
	if diff := cmp.Diff([]int{429, 200}, statuses); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

func (a *azure) play(t *testing.T, f fault.Fault) {
	t.Helper()
	if _, err := a.Faults.Add(f); err != nil {
		t.Fatal(err)
	}
}

func scaleSets(t *testing.T, a *azure) *armcompute.VirtualMachineScaleSetsClient {
	t.Helper()
	credential, err := azidentity.NewClientSecretCredential(tenant, micClientID, string(secret),
		&azidentity.ClientSecretCredentialOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	client, err := armcompute.NewVirtualMachineScaleSetsClient(subscription, credential, &arm.ClientOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func identities(kind armcompute.ResourceIdentityType, ids ...string) armcompute.VirtualMachineScaleSetUpdate {
	named := map[string]*armcompute.UserAssignedIdentitiesValue{}
	for _, id := range ids {
		named[id] = &armcompute.UserAssignedIdentitiesValue{}
	}
	return armcompute.VirtualMachineScaleSetUpdate{Identity: &armcompute.VirtualMachineScaleSetIdentity{Type: &kind, UserAssignedIdentities: named}}
}

func getScaleSet(t *testing.T, client *armcompute.VirtualMachineScaleSetsClient) armcompute.VirtualMachineScaleSet {
	t.Helper()
	got, err := client.Get(t.Context(), "MC_nodes", scaleSetName, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.VirtualMachineScaleSet
}

type updatePoller = runtime.Poller[armcompute.VirtualMachineScaleSetsClientUpdateResponse]

func beginUpdate(t *testing.T, client *armcompute.VirtualMachineScaleSetsClient, patch armcompute.VirtualMachineScaleSetUpdate) *updatePoller {
	t.Helper()
	poller, err := client.BeginUpdate(t.Context(), "MC_nodes", scaleSetName, patch, nil)
	if err != nil {
		t.Fatal(err)
	}
	return poller
}

func poll(t *testing.T, poller *updatePoller) *http.Response {
	t.Helper()
	resp, err := poller.Poll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func patches(a *azure) []journal.Entry {
	return slices.DeleteFunc(a.Journal.Since(0), func(e journal.Entry) bool { return e.Method != http.MethodPatch })
}
