package azuresim_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

func TestAzureIsSetUpThroughTheControlAPI(t *testing.T) {
	a := start(t, azuresim.Config{})
	c, ctx := a.ControlClient(), t.Context()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	identity, err := c.AddIdentity(ctx, model.Identity{ID: demoID})
	check(t, err)
	application, err := c.AddApplication(ctx, model.Application{Secrets: []model.Secret{secret}})
	check(t, err)
	_, err = c.AddScaleSet(ctx, model.ScaleSet{ID: scaleSetID})
	check(t, err)
	_, err = c.AddNode(ctx, model.Node{Name: "node-0", ScaleSet: scaleSetID, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	check(t, err)
	_, err = c.AddVault(ctx, model.Vault{ID: vaultID})
	check(t, err)
	written, err := c.PutSecret(ctx, "DEMO-vault", model.VaultSecret{Name: "greeting", Value: "hi"})
	check(t, err)
	_, err = c.AssignRole(ctx, model.RoleAssignment{Principal: identity.PrincipalID, Role: "Key Vault Secrets User", Scope: vaultID})
	check(t, err)
	check(t, c.Attach(ctx, scaleSetID, demoID))
	if identity.ClientID == "" || application.ClientID == "" || application.Name != application.ClientID || written.Version == "" {
		t.Errorf("the simulator chose no IDs: %+v %+v %+v", identity, application, written)
	}

	got, err := secrets(t, a, managedIdentity(t, a, azidentity.ClientID(identity.ClientID))).GetSecret(ctx, "greeting", "", nil)
	check(t, err)
	if *got.Value != "hi" {
		t.Errorf("got %q", *got.Value)
	}

	doc, err := c.State(ctx)
	check(t, err)
	want := model.Document{
		Tenant:       a.State.Tenant(),
		Identities:   []model.Identity{{ID: lowered(demoID), ClientID: identity.ClientID, PrincipalID: identity.PrincipalID}},
		Applications: []model.Application{{Name: application.ClientID, ClientID: application.ClientID, PrincipalID: application.PrincipalID, Secrets: []model.Secret{""}}},
		ScaleSets: []model.ScaleSet{{
			ID: scaleSetID, Location: "westeurope", UserAssigned: []string{lowered(demoID)}, ETag: `"2"`, ProvisioningState: "Succeeded",
		}},
		Nodes:           []model.Node{{Name: "node-0", ScaleSet: scaleSetID, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
		RoleAssignments: []model.RoleAssignment{{Principal: identity.PrincipalID, Role: "Key Vault Secrets User", Scope: vaultID}},
		Vaults:          []model.Vault{{ID: vaultID, Secrets: []model.VaultSecret{{Name: "greeting", Version: written.Version}}}},
	}
	if diff := cmp.Diff(want, doc, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDocumentsThroughTheControlAPI(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	c := a.ControlClient()
	added, err := c.Add(t.Context(), model.Document{Identities: []model.Identity{{ID: demoID + "2"}}})
	check(t, err)
	if len(added.Identities) != 1 || added.Identities[0].ID != lowered(demoID)+"2" || len(added.Applications) != 0 {
		t.Errorf("got %+v, want only what was added", added)
	}
	check(t, c.Replace(t.Context(), model.Document{Identities: []model.Identity{{ID: demoID}}}))
	doc, err := c.State(t.Context())
	check(t, err)
	if len(doc.Identities) != 1 || len(doc.ScaleSets) != 0 || doc.Tenant != tenant {
		t.Errorf("after Replace: %+v, want one identity in the same tenant", doc)
	}
}

func TestControlAPIRefusesInWords(t *testing.T) {
	for name, test := range map[string]struct {
		method, path, body string
		status             int
		words              string
	}{
		"unknown route":           {"GET", "/azure", "", 404, "has no GET /azure"},
		"unknown field":           {"POST", "/identities", `{"id":"x","objectID":"y"}`, 400, `unknown field \"objectID\"`},
		"unknown document field":  {"PUT", "/state", "identity: []", 400, `unknown field \"identity\"`},
		"placeholder":             {"POST", "/identities", `{"id":"/subscriptions/<sub>/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x"}`, 400, "placeholder"},
		"identity again":          {"POST", "/identities", `{"id":"` + strings.ToUpper(demoID) + `"}`, 400, "is there already"},
		"clientID taken":          {"POST", "/applications", `{"clientID":"` + demoClientID + `"}`, 400, "is taken"},
		"GUID that is none":       {"POST", "/applications", `{"clientID":"mic"}`, 400, "not a GUID"},
		"empty secret":            {"POST", "/applications", `{"name":"x","secrets":[""]}`, 400, "empty secret"},
		"scale set that is a VM":  {"POST", "/scaleSets", `{"id":"` + nodeGroup + `/providers/Microsoft.Compute/virtualMachines/x"}`, 400, "not the ID of a scale set"},
		"scale set's instance":    {"POST", "/scaleSets", `{"id":"` + scaleSetID + `/virtualMachines/0"}`, 400, "not the ID of a scale set"},
		"VM that is a scale set":  {"POST", "/virtualMachines", `{"id":"` + scaleSetID + `"}`, 400, "not the ID of a virtual machine"},
		"VM again":                {"POST", "/virtualMachines", `{"id":"` + strings.ToUpper(vmID) + `"}`, 400, "is there already"},
		"node of both":            {"POST", "/nodes", `{"name":"x","scaleSet":"` + scaleSetID + `","vm":"` + vmID + `","prefixes":["10.0.0.1/32"]}`, 400, "both given"},
		"node of neither":         {"POST", "/nodes", `{"name":"x","prefixes":["10.0.0.1/32"]}`, 400, "neither scaleSet nor vm"},
		"node of no VM":           {"POST", "/nodes", `{"name":"x","vm":"` + vmID + `2","prefixes":["10.0.0.1/32"]}`, 404, "virtual machine " + vmID + "2"},
		"node whose VM is a set":  {"POST", "/nodes", `{"name":"x","vm":"` + scaleSetID + `","prefixes":["10.0.0.1/32"]}`, 404, "not found"},
		"a VM's second node":      {"POST", "/nodes", `{"name":"x","vm":"` + vmID + `","prefixes":["10.0.0.1/32"]}`, 400, `node \"node-vm\" is the virtual machine`},
		"a VM's instance":         {"POST", "/nodes", `{"name":"x","vm":"` + vmID + `","instance":2,"prefixes":["10.0.0.1/32"]}`, 400, "instance number 2"},
		"attach to no VM":         {"POST", "/attachments", `{"vm":"` + vmID + `2","identity":"` + demoID + `"}`, 404, "not found"},
		"attach to both":          {"POST", "/attachments", `{"vm":"` + vmID + `","scaleSet":"` + scaleSetID + `","identity":"` + demoID + `"}`, 400, "both given"},
		"account that is none":    {"POST", "/storageAccounts", `{"id":"` + vaultID + `"}`, 400, "is not a storage account"},
		"account with a bad name": {"POST", "/storageAccounts", `{"id":"` + accountID + `-2"}`, 400, "letters and digits"},
		"account again":           {"POST", "/storageAccounts", `{"id":"` + strings.Replace(accountID, "Apps", "elsewhere", 1) + `"}`, 400, "unique in all of Azure"},
		"container's bad name":    {"POST", "/storageAccounts", `{"id":"` + accountID + `2","containers":[{"name":"A_b"}]}`, 400, "lower-case letters"},
		"container again":         {"POST", "/storageAccounts", `{"id":"` + accountID + `2","containers":[{"name":"abc"},{"name":"abc"}]}`, 400, "is there already"},
		"blob without a name":     {"POST", "/storageAccounts", `{"id":"` + accountID + `2","containers":[{"name":"abc","blobs":[{"name":""}]}]}`, 400, "1 to 1024 characters"},
		"blob again":              {"POST", "/storageAccounts", `{"id":"` + accountID + `2","containers":[{"name":"abc","blobs":[{"name":"x"},{"name":"x"}]}]}`, 400, "twice"},
		"attached but not there":  {"POST", "/scaleSets", `{"id":"` + scaleSetID + `2","userAssigned":["` + demoID + `2"]}`, 400, "add it first"},
		"node of no scale set":    {"POST", "/nodes", `{"name":"x","scaleSet":"` + scaleSetID + `2","prefixes":["10.0.0.1/32"]}`, 404, "not found"},
		"node without prefixes":   {"POST", "/nodes", `{"name":"x","scaleSet":"` + scaleSetID + `","instance":1}`, 400, "needs the prefixes"},
		"node with a taken one":   {"POST", "/nodes", `{"name":"x","scaleSet":"` + scaleSetID + `","instance":1,"prefixes":["127.0.0.1/32"]}`, 400, `is node \"node-0\"'s already`},
		"node again":              {"POST", "/nodes", `{"name":"node-0","scaleSet":"` + scaleSetID + `","instance":1,"prefixes":["10.0.0.1/32"]}`, 400, "is there already"},
		"instance again":          {"POST", "/nodes", `{"name":"x","scaleSet":"` + scaleSetID + `","prefixes":["10.0.0.1/32"]}`, 400, "is instance 0 already"},
		"unknown role":            {"POST", "/roleAssignments", `{"principal":"` + micObjectID + `","role":"King","scope":"` + nodeGroup + `"}`, 400, "use one of"},
		"scope that is none":      {"POST", "/roleAssignments", `{"principal":"` + micObjectID + `","role":"Owner","scope":"MC_nodes"}`, 400, "want /subscriptions/S"},
		"no scope":                {"POST", "/roleAssignments", `{"principal":"` + micObjectID + `","role":"Owner"}`, 400, "want /subscriptions/S"},
		"vault that is none":      {"POST", "/vaults", `{"id":"` + scaleSetID + `"}`, 400, "is not a key vault"},
		"vault with a bad name":   {"POST", "/vaults", `{"id":"` + vaultID + `_2"}`, 400, "letters, digits and hyphens"},
		"vault again":             {"POST", "/vaults", `{"id":"` + strings.Replace(vaultID, "Apps", "elsewhere", 1) + `"}`, 400, "unique in all of Azure"},
		"secret of no vault":      {"POST", "/vaults/other/secrets", `{"name":"x","value":"y"}`, 404, "not found"},
		"secret with a bad name":  {"POST", "/vaults/demo-vault/secrets", `{"name":"a_b","value":"y"}`, 400, "letters, digits and hyphens"},
		"attach to nothing":       {"POST", "/attachments", `{"scaleSet":"` + scaleSetID + `2","identity":"` + demoID + `"}`, 404, "not found"},
		"attach nothing":          {"POST", "/attachments", `{"scaleSet":"` + scaleSetID + `","identity":"` + demoID + `2"}`, 404, "not found"},
		"fault that does nothing": {"POST", "/faults", `{"match":{},"response":{}}`, 400, "does nothing"},
		"no such fault":           {"DELETE", "/faults/9", "", 404, `no fault \"9\"`},
		"since that is no number": {"GET", "/journal?since=a", "", 400, "parsing since"},
		"wait that is no time":    {"GET", "/journal?wait=1", "", 400, "parsing wait"},
		"poison that is none":     {"POST", "/poison", `{"identity":"` + demoID + `","naming":"quoted"}`, 400, `naming is \"quoted\"`},
		"cure of nothing":         {"DELETE", "/poison", `{"identity":"` + demoID + `"}`, 404, "not found"},
		"deletion of nothing":     {"POST", "/deletions", `{}`, 400, "neither scaleSet nor vm"},
		"deletion of none":        {"POST", "/deletions", `{"identity":"` + demoID + `2"}`, 404, "not found"},
		"deletion of two":         {"POST", "/deletions", `{"identity":"` + demoID + `","vm":"` + vmID + `"}`, 400, "deleted alone"},
		"mode of a VM":            {"POST", "/virtualMachines", `{"id":"` + vmID + `2","orchestrationMode":"Flexible"}`, 400, "is no scale set"},
		"mode that is none":       {"POST", "/scaleSets", `{"id":"` + scaleSetID + `2","orchestrationMode":"Stiff"}`, 400, "want Uniform or Flexible"},
		"scale set in another":    {"POST", "/scaleSets", `{"id":"` + scaleSetID + `2","scaleSet":"` + scaleSetID + `"}`, 400, "names a scale set, and is one"},
		"VM in a Uniform one":     {"POST", "/virtualMachines", `{"id":"` + vmID + `2","scaleSet":"` + scaleSetID + `"}`, 400, "is not Flexible"},
		"VM in no scale set":      {"POST", "/virtualMachines", `{"id":"` + vmID + `2","scaleSet":"` + scaleSetID + `2"}`, 404, "not found"},
		"node of a Flexible one":  {"POST", "/state", `{"scaleSets":[{"id":"` + scaleSetID + `2","orchestrationMode":"Flexible"}],"nodes":[{"name":"x","scaleSet":"` + scaleSetID + `2","prefixes":["10.0.0.1/32"]}]}`, 400, "name its virtual machine"},
		"null of no attached one": {"POST", "/scaleSets", `{"id":"` + scaleSetID + `2","nullPrincipals":["` + demoID + `"]}`, 400, "not among its userAssigned"},
		"burst for no resource":   {"POST", "/bursts", `{"verb":"get","requests":1}`, 400, "nothing is limited"},
		"unknown setting":         {"PUT", "/settings", `{"arm":{"throttle":{}}}`, 400, `unknown field \"throttle\"`},
		"setting that cannot be":  {"PUT", "/settings", `{"clockFactor":-1}`, 400, "clockFactor is -1"},
		"document's bad setting":  {"POST", "/state", `{"settings":{"clockFactor":-1}}`, 400, "clockFactor is -1"},
		"latency that is none":    {"PUT", "/settings", `{"arm":{"latency":{"vm":"long"}}}`, 400, "want a duration such as 2s"},
		"burst without limits":    {"POST", "/bursts", `{"vm":"` + vmID + `","verb":"get","requests":1}`, 400, "nothing is limited"},
		"unknown query":           {"GET", "/journal?after=1", "", 400, `unknown query parameter \"after\"`},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, azuresim.Config{State: document()})
			before := a.State.Snapshot()
			req := newRequest(t, test.method, "http://"+a.Control+test.path, test.body)
			if status, body := request(t, http.DefaultClient, req); status != test.status || !strings.Contains(body, test.words) {
				t.Errorf("got %d %s, want %d and %q", status, body, test.status, test.words)
			}
			if diff := cmp.Diff(before, a.State.Snapshot(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("the refusal changed the state:\n%s", diff)
			}
		})
	}
}

func TestDetachThroughTheControlAPI(t *testing.T) {
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID, otherID}
	a := start(t, azuresim.Config{State: doc})
	for range 2 { // what is not there is no error
		check(t, a.ControlClient().Detach(t.Context(), model.Attachment{ScaleSet: scaleSetID, Identity: strings.ToUpper(demoID)}))
	}
	if got := a.State.Snapshot().ScaleSets[0].UserAssigned; len(got) != 1 || got[0] != lowered(otherID) {
		t.Errorf("left: %v", got)
	}
	if status, _ := imds(t, a, demoClientID); status != http.StatusBadRequest {
		t.Errorf("IMDS: %d", status)
	}
}

func TestAttachMeetsARunningOperation(t *testing.T) {
	clock := newClock()
	a := start(t, azuresim.Config{State: document(), ARMLatency: time.Minute, Clock: clock.Now})
	beginUpdate(t, scaleSets(t, a), identities(userAssigned, otherID))
	err := a.ControlClient().Attach(t.Context(), scaleSetID, demoID)
	var refused *control.Error
	if !errors.As(err, &refused) || refused.Status != http.StatusConflict {
		t.Errorf("got %v, want 409", err)
	}
	clock.Advance(time.Minute)
	check(t, a.ControlClient().Attach(t.Context(), scaleSetID, demoID))
}

func TestJournalIsWaitedForOverHTTP(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	c := a.ControlClient()
	found := make(chan journal.Entry, 1)
	go func() {
		e, err := c.Wait(t.Context(), 0, func(e journal.Entry) bool { return e.Surface == journal.IMDS && e.Status == 400 })
		if err != nil {
			t.Error(err)
		}
		found <- e
	}()
	get(t, a, loginURL+"/"+tenant+"/discovery/v2.0/keys", &struct{}{})
	imds(t, a, demoClientID)
	if e := <-found; e.Node != "node-0" || e.Seq != 2 {
		t.Errorf("got %s", e)
	}
	all, err := c.Journal(t.Context(), 1)
	check(t, err)
	if len(all) != 1 || all[0].Seq != 2 {
		t.Errorf("got %v, want what is above 1", all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Wait(ctx, 9, func(journal.Entry) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestFaultsThroughTheControlAPI(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	c, ctx := a.ControlClient(), t.Context()
	slow, err := c.AddFault(ctx, fault.Fault{
		Match:    fault.Match{Surface: journal.IMDS, Node: "node-0"},
		Response: fault.Response{Status: 429, Code: "throttled", Message: "Too many requests", Headers: map[string]string{"Retry-After": "7"}},
	})
	check(t, err)
	req := newRequest(t, http.MethodGet, tokenURL, "")
	resp, err := a.Client().Do(req)
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "7" {
		t.Errorf("got %s with Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	if e := a.Journal.Since(0)[0]; e.Detail != "fault "+slow.ID || e.Unexpected || e.Code != "throttled" {
		t.Errorf("the journal says %s", e)
	}
	list, err := c.Faults(ctx)
	check(t, err)
	if len(list) != 1 || list[0].Played != 1 {
		t.Errorf("got %+v", list)
	}
	check(t, c.RemoveFault(ctx, slow.ID))
	if status, _ := imds(t, a, demoClientID); status != http.StatusBadRequest {
		t.Errorf("after the fault: got %d", status)
	}
	_, err = c.AddFault(ctx, fault.Fault{Response: fault.Response{Drop: true}})
	check(t, err)
	check(t, c.RemoveFault(ctx, ""))
	if list, err = c.Faults(ctx); err != nil || len(list) != 0 {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestFaultsDropAndDelay(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, fault.Fault{Match: fault.Match{Method: "POST"}, Response: fault.Response{Drop: true}, Times: 1})
	if resp, err := a.Client().Do(newRequest(t, http.MethodPost, loginURL+"/"+tenant+"/oauth2/v2.0/token", "")); err == nil {
		resp.Body.Close()
		t.Error("a dropped connection answered")
	}
	if e := a.Journal.Since(0)[0]; e.Status != 0 {
		t.Errorf("the journal says %s", e)
	}
	a.play(t, fault.Fault{Response: fault.Response{Delay: fault.Duration(50 * time.Millisecond)}, Times: 1})
	before := time.Now()
	get(t, a, loginURL+"/"+tenant+"/discovery/v2.0/keys", &struct{}{})
	if took := time.Since(before); took < 50*time.Millisecond {
		t.Errorf("a delayed answer took %s", took)
	}
}

func TestDelayEndsWithItsClient(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, fault.Fault{Response: fault.Response{Delay: fault.Duration(time.Hour)}, Times: 1})
	ctx, cancel := context.WithCancel(t.Context())
	// once the request is on its way the client gives up
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { cancel() }})
	resp, err := a.Client().Do(newRequest(t, http.MethodGet, loginURL+"/", "").WithContext(ctx))
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	e, err := a.Journal.Wait(t.Context(), func(journal.Entry) bool { return true })
	check(t, err)
	if e.Status != 0 || e.Detail != "fault 1" {
		t.Errorf("the journal says %s", e)
	}
}

func TestPoolTrustsTheSimulatorOnly(t *testing.T) {
	a := start(t, azuresim.Config{})
	pool, err := a.ControlClient().Pool(t.Context())
	check(t, err)
	if !pool.Equal(a.Pool()) {
		t.Error("the pool over HTTP is not the simulator's")
	}
}

func TestClientSaysWhatFailed(t *testing.T) {
	if err := control.New("http://127.0.0.1:1", nil).Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "calling the simulator") {
		t.Errorf("got %v", err)
	}
}
