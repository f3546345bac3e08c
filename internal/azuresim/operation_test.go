package azuresim_test

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

func onPatch(r fault.Response) fault.Fault {
	return fault.Fault{Match: fault.Match{Surface: journal.ARM, Method: http.MethodPatch}, Response: r, Times: 1}
}

func TestLostOperationGoesOn(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, onPatch(fault.Response{LoseOperation: true}))
	client := scaleSets(t, a)
	poller := beginUpdate(t, client, identities(userAssigned, demoID))
	_, err := poller.PollUntilDone(t.Context(), nil)
	errorCode(t, err, http.StatusNotFound)
	if got := getScaleSet(t, client); got.Identity == nil || *got.Properties.ProvisioningState != "Succeeded" {
		t.Errorf("got %+v", got.Identity)
	}
	if status, body := imds(t, a, demoClientID); status != http.StatusOK {
		t.Errorf("IMDS: %d %s", status, body)
	}
}

func TestLostAnswerToAPatchThatTookPlace(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, onPatch(fault.Response{LoseAnswer: true}))
	client := scaleSets(t, a)
	if _, err := client.BeginUpdate(withoutRetries(t), "MC_nodes", scaleSetName, identities(userAssigned, demoID), nil); err == nil {
		t.Error("the answer came")
	}
	if got := getScaleSet(t, client); got.Identity == nil {
		t.Error("the change did not take place")
	}
	if e := patches(a)[0]; e.Status != 0 || len(e.Added) != 1 {
		t.Errorf("the journal says %s", e)
	}
}

func TestSlowOperationOnItsOwn(t *testing.T) {
	clock := newClock()
	a := start(t, azuresim.Config{State: document(), Settings: settings.Settings{ClockFactor: 30}, Clock: clock.Now})
	a.play(t, onPatch(fault.Response{OperationLatency: fault.Duration(15 * time.Minute)}))
	client := scaleSets(t, a)
	beginUpdate(t, client, identities(userAssigned, demoID))
	clock.Advance(30*time.Second - time.Millisecond)
	if got := *getScaleSet(t, client).Properties.ProvisioningState; got != "Updating" {
		t.Errorf("before its end: %s", got)
	}
	clock.Advance(time.Millisecond)
	if got := *getScaleSet(t, client).Properties.ProvisioningState; got != "Succeeded" {
		t.Errorf("at its end: %s", got)
	}
}

const (
	flexID   = nodeGroup + "/providers/Microsoft.Compute/virtualMachineScaleSets/aks-flex"
	flexVMID = nodeGroup + "/providers/Microsoft.Compute/virtualMachines/aks-flex_0a1b2c"
)

func TestFlexibleScaleSetsInstancesHaveIdentitiesOfTheirOwn(t *testing.T) {
	doc := document()
	doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: flexID, OrchestrationMode: "Flexible"})
	doc.VirtualMachines = append(doc.VirtualMachines, model.VirtualMachine{ID: flexVMID, ScaleSet: strings.ToLower(flexID)})
	doc.Nodes = append(doc.Nodes, model.Node{Name: "flex-0", VM: flexVMID, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.9.2/32")}})
	a := start(t, azuresim.Config{State: doc})
	ctx := t.Context()
	poller, err := scaleSets(t, a).BeginUpdate(ctx, "MC_nodes", "aks-flex", identities(userAssigned, demoID), nil)
	check(t, err)
	set, err := poller.PollUntilDone(ctx, nil)
	check(t, err)
	if *set.Properties.OrchestrationMode != armcompute.OrchestrationModeFlexible {
		t.Errorf("it is %s", *set.Properties.OrchestrationMode)
	}
	if status, _ := imdsFrom(t, a, "127.0.9.2", demoClientID); status != http.StatusBadRequest {
		t.Errorf("the scale set's identity works on an instance that was there: %d", status)
	}
	vms := virtualMachines(t, a)
	attached, err := vms.BeginUpdate(ctx, "MC_nodes", "aks-flex_0a1b2c", vmIdentities(demoID), nil)
	check(t, err)
	vm, err := attached.PollUntilDone(ctx, nil)
	check(t, err)
	if *vm.Properties.VirtualMachineScaleSet.ID != flexID {
		t.Errorf("it is an instance of %s", *vm.Properties.VirtualMachineScaleSet.ID)
	}
	if status, body := imdsFrom(t, a, "127.0.9.2", demoClientID); status != http.StatusOK {
		t.Errorf("got %d %s", status, body)
	}
	req := newRequest(t, http.MethodGet, imdsURL+"/metadata/instance/compute?api-version=2021-02-01", "")
	req.Header.Set("Metadata", "true")
	_, body := request(t, a.ClientFrom(t, netip.MustParseAddr("127.0.9.2")), req)
	var compute map[string]string
	if err := json.Unmarshal([]byte(body), &compute); err != nil || compute["vmScaleSetName"] != "aks-flex" || compute["name"] != "aks-flex_0a1b2c" {
		t.Errorf("compute is %s, %v", body, err)
	}
	again := start(t, azuresim.Config{State: reloadable(a.State.Snapshot())})
	if got := again.State.Snapshot().VirtualMachines[0]; got.ScaleSet != flexID && again.State.Snapshot().VirtualMachines[1].ScaleSet != flexID {
		t.Errorf("after a document: %+v", got)
	}
}
