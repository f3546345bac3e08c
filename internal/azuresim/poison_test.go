package azuresim_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// dottedID lies in a group whose name holds all that Azure allows.
const dottedID = "/subscriptions/" + subscription + "/resourceGroups/Apps_(EU).v1-2/providers/Microsoft.ManagedIdentity/userAssignedIdentities/bad_one-2"

// poisoned is document with dottedID as poison, which MIC may assign.
func poisoned(p poison.Poison) model.Document {
	doc := document()
	p.Identity = dottedID
	doc.Poison = []poison.Poison{p}
	doc.RoleAssignments = append(doc.RoleAssignments, model.RoleAssignment{Principal: micObjectID, Role: "Managed Identity Operator", Scope: "/subscriptions/" + subscription})
	return doc
}

func TestPoisonIsRefusedInItsWords(t *testing.T) {
	arm := lowered(dottedID)
	for name, test := range map[string]struct {
		poison poison.Poison
		status int
		code   string
		words  string
	}{
		"named in single quotes":    {poison.Poison{}, 400, "FailedIdentityOperation", "Resource '" + arm + "' was not found."},
		"named in double quotes":    {poison.Poison{Naming: poison.Double}, 400, "FailedIdentityOperation", arm},
		"named bare in upper case":  {poison.Poison{Naming: poison.Bare, Casing: poison.Upper}, 400, "FailedIdentityOperation", "Resource " + strings.ToUpper(dottedID) + " was not found."},
		"not named":                 {poison.Poison{Naming: poison.Unnamed}, 400, "FailedIdentityOperation", "Bad request."},
		"not assignable":            {poison.Poison{Error: poison.LinkedAuthorizationFailed}, 403, "LinkedAuthorizationFailed", "on the linked scope(s) '" + arm + "' (respectively)"},
		"not assignable, not named": {poison.Poison{Error: poison.LinkedAuthorizationFailed, Naming: poison.Unnamed}, 403, "LinkedAuthorizationFailed", "not authorized to access a linked subscription"},
		"throttled behind ARM":      {poison.Poison{Error: poison.Throttled}, 429, "FailedIdentityOperation", "Request is temporarily throttled because resource " + scaleSetID},
	} {
		t.Run(name, func(t *testing.T) {
			for _, in := range []string{poison.InRequest, poison.InOperation} {
				test.poison.In = in
				a := start(t, azuresim.Config{State: poisoned(test.poison)})
				client := scaleSets(t, a)
				poller, err := client.BeginUpdate(withoutRetries(t), "MC_nodes", scaleSetName, identities(userAssigned, demoID, dottedID), nil)
				status := test.status
				if in == poison.InOperation {
					if err != nil {
						t.Fatal(err)
					}
					_, err = poller.PollUntilDone(t.Context(), nil)
					status = http.StatusOK
				}
				if code := errorCode(t, err, status); code != test.code {
					t.Errorf("in the %s: got code %s, want %s", in, code, test.code)
				}
				if !strings.Contains(err.Error(), test.words) {
					t.Errorf("in the %s: %v does not say %q", in, err, test.words)
				}
				if got := a.State.Snapshot().ScaleSets[0].UserAssigned; len(got) != 0 {
					t.Errorf("in the %s: attached all the same: %v", in, got)
				}
			}
		})
	}
}

func TestPoisonSparesRequestsWithoutIt(t *testing.T) {
	a := start(t, azuresim.Config{State: poisoned(poison.Poison{Times: 1})})
	c, ctx := a.ControlClient(), t.Context()
	client := scaleSets(t, a)
	attach := func(id string) error {
		poller, err := client.BeginUpdate(ctx, "MC_nodes", scaleSetName, identities(userAssigned, id), nil)
		if err == nil {
			_, err = poller.PollUntilDone(ctx, nil)
		}
		return err
	}
	check(t, attach(demoID))
	errorCode(t, attach(dottedID), http.StatusBadRequest)
	if got := a.State.Snapshot().Poison[0].Played; got != 1 {
		t.Errorf("played %d times, want 1", got)
	}
	if err := attach(dottedID); !strings.Contains(err.Error(), "was not found") {
		t.Errorf("once it is no poison it is still not there, and yet: %v", err)
	}
	_, err := c.AddIdentity(ctx, model.Identity{ID: dottedID})
	check(t, err)
	check(t, attach(dottedID))
	check(t, c.Cure(ctx, strings.ToUpper(dottedID)))
	if err := c.Cure(ctx, dottedID); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("curing it twice: %v", err)
	}
	added, err := c.Poison(ctx, poison.Poison{Identity: demoID, Naming: poison.Double})
	check(t, err)
	if added.Casing != poison.AsARM || added.Naming != poison.Double {
		t.Errorf("got %+v", added)
	}
}

func TestRecreatedIdentityLeavesANullPrincipal(t *testing.T) {
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID, otherID}
	a := start(t, azuresim.Config{State: doc})
	c, ctx := a.ControlClient(), t.Context()
	client := scaleSets(t, a)
	fresh, err := c.Recreate(ctx, model.Identity{ID: demoID})
	check(t, err)
	isNull := func(id string) bool {
		t.Helper()
		value := getScaleSet(t, client).Identity.UserAssignedIdentities[lowered(id)]
		return value.ClientID == nil && value.PrincipalID == nil
	}
	if fresh.ClientID == demoClientID || !isNull(demoID) || isNull(otherID) {
		t.Errorf("got the client ID %s, null %v, the other's null %v", fresh.ClientID, isNull(demoID), isNull(otherID))
	}
	for _, clientID := range []string{fresh.ClientID, demoClientID} {
		if status, body := imds(t, a, clientID); status != http.StatusBadRequest || !strings.Contains(body, "Identity not found") {
			t.Errorf("IMDS for %s: %d %s", clientID, status, body)
		}
	}
	patch := func(change map[string]*armcompute.UserAssignedIdentitiesValue) {
		t.Helper()
		update := identities(userAssigned)
		update.Identity.UserAssignedIdentities = change
		poller, err := client.BeginUpdate(ctx, "MC_nodes", scaleSetName, update, nil)
		check(t, err)
		_, err = poller.PollUntilDone(ctx, nil)
		check(t, err)
	}
	patch(map[string]*armcompute.UserAssignedIdentitiesValue{demoID: {}})
	if !isNull(demoID) {
		t.Error("adding it again over the null principal healed it")
	}
	again := start(t, azuresim.Config{State: reloadable(a.State.Snapshot())})
	if value := getScaleSet(t, scaleSets(t, again)).Identity.UserAssignedIdentities[lowered(demoID)]; value.PrincipalID != nil {
		t.Error("the null principal did not survive a document")
	}
	patch(map[string]*armcompute.UserAssignedIdentitiesValue{demoID: nil})
	patch(map[string]*armcompute.UserAssignedIdentitiesValue{demoID: {}})
	if isNull(demoID) {
		t.Error("it is null after it was removed and added")
	}
	if status, body := imds(t, a, fresh.ClientID); status != http.StatusOK {
		t.Errorf("IMDS: %d %s", status, body)
	}
}

// reloadable puts the secrets back that a snapshot blanks.
func reloadable(doc model.Document) model.Document {
	doc.Applications[0].Secrets = []model.Secret{secret}
	doc.Vaults = nil
	return doc
}

func TestDeletedIdentityIsANullPrincipalToo(t *testing.T) {
	doc := document()
	doc.VirtualMachines[0].UserAssigned = []string{demoID}
	a := start(t, azuresim.Config{State: doc})
	check(t, a.ControlClient().Delete(t.Context(), model.Deletion{Identity: demoID}))
	if value := getVM(t, virtualMachines(t, a)).Identity.UserAssignedIdentities[lowered(demoID)]; value == nil || value.PrincipalID != nil {
		t.Errorf("got %+v, want an entry with a null principal", value)
	}
	if status, _ := imdsFrom(t, a, vmAddr, demoClientID); status != http.StatusBadRequest {
		t.Errorf("IMDS: %d", status)
	}
}

func TestDeletingScaleSetRefuses(t *testing.T) {
	clock := newClock()
	a := start(t, azuresim.Config{State: document(), ARMLatency: time.Minute, Clock: clock.Now})
	c, ctx := a.ControlClient(), t.Context()
	client := scaleSets(t, a)
	beginUpdate(t, client, identities(userAssigned, demoID))
	check(t, c.Delete(ctx, model.Deletion{ScaleSet: scaleSetID, Begin: true}))
	clock.Advance(30 * time.Minute)
	if got := *getScaleSet(t, client).Properties.ProvisioningState; got != "Deleting" {
		t.Errorf("provisioningState is %s", got)
	}
	_, err := client.BeginUpdate(ctx, "MC_nodes", scaleSetName, identities(userAssigned, demoID), nil)
	if code := errorCode(t, err, http.StatusConflict); code != "OperationNotAllowed" || !strings.Contains(err.Error(), "marked for deletion") {
		t.Errorf("got %v", err)
	}
	check(t, c.Delete(ctx, model.Deletion{ScaleSet: scaleSetID}))
	_, err = client.Get(ctx, "MC_nodes", scaleSetName, nil)
	errorCode(t, err, http.StatusNotFound)
	if doc := a.State.Snapshot(); len(doc.ScaleSets) != 0 || len(doc.Nodes) != 1 {
		t.Errorf("left: %+v %+v", doc.ScaleSets, doc.Nodes)
	}
}
