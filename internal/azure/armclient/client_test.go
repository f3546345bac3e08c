package armclient_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

func TestReadAndChange(t *testing.T) { eachKind(t, readAndChange) }

func readAndChange(t *testing.T, id string) {
	a := start(t, azuresim.Config{State: document(), ARMLatency: 100 * time.Millisecond})
	client := a.arm(t)
	target := ref(t, strings.ToUpper(id))
	seen, err := client.Get(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	if seen.Type != compute.TypeBoth || seen.Present[user(t, "mic")] != micClientID || seen.ETag == "" || seen.Updating {
		t.Errorf("got %+v", seen)
	}
	patch := compute.IdentityPatch(seen, []armid.ID{user(t, "demo")}, nil, 0)
	after, err := a.update(t, client, target, seen.ETag, patch)
	if err != nil {
		t.Fatal(err)
	}
	if !after.Has(user(t, "demo")) || !after.Has(user(t, "mic")) || after.Type != compute.TypeBoth || after.ETag == seen.ETag || after.Updating {
		t.Errorf("got %+v", after)
	}
	patch = compute.IdentityPatch(after, []armid.ID{user(t, "demo-2")}, []armid.ID{user(t, "demo")}, 0)
	last, err := a.update(t, client, target, after.ETag, patch)
	if err != nil {
		t.Fatal(err)
	}
	if last.Has(user(t, "demo")) || !last.Has(user(t, "demo-2")) {
		t.Errorf("got %+v", last)
	}
	demo, demo2 := user(t, "demo").String(), user(t, "demo-2").String()
	want := []string{
		`{"identity":{"type":"SystemAssigned, UserAssigned","userAssignedIdentities":{"` + demo + `":{}}}}`,
		`{"identity":{"type":"SystemAssigned, UserAssigned","userAssignedIdentities":{"` + demo + `":null,"` + demo2 + `":{}}}}`,
	}
	if diff := cmp.Diff(want, a.bodies); diff != "" {
		t.Errorf("bodies (-want +got):\n%s", diff)
	}
	if agent := a.headers[0].Get("User-Agent"); !strings.HasPrefix(agent, "aad-pod-identity/MIC/v1 custom/2 azsdk-go-armcompute") {
		t.Errorf("User-Agent is %q", agent)
	}
}

func TestNothingLeftIsTheTypeAlone(t *testing.T) { eachKind(t, nothingLeftIsTheTypeAlone) }

func nothingLeftIsTheTypeAlone(t *testing.T, id string) {
	for name, test := range map[string]struct {
		kind compute.IdentityType
		want string
	}{
		"none":            {compute.TypeUserAssigned, `{"identity":{"type":"None"}}`},
		"system-assigned": {compute.TypeBoth, `{"identity":{"type":"SystemAssigned"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			if test.kind == compute.TypeUserAssigned {
				doc.ScaleSets[0].SystemAssigned, doc.VirtualMachines[0].SystemAssigned = nil, nil
			}
			a := start(t, azuresim.Config{State: doc})
			client := a.arm(t)
			seen, err := client.Get(t.Context(), ref(t, id))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.update(t, client, ref(t, id), seen.ETag, compute.IdentityPatch(seen, nil, []armid.ID{user(t, "mic")}, 0)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{test.want}, a.bodies); diff != "" {
				t.Errorf("bodies (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKindsAreApart(t *testing.T) {
	var ended []string
	a := start(t, azuresim.Config{State: document()})
	client := newClient(t, armclient.Config{Cloud: "azurepubliccloud", TenantID: tenant, ClientID: appClientID, ClientSecret: secret}, armclient.Options{
		Transport: a, Observe: func(e armclient.Ended) { ended = append(ended, string(e.Kind)+" "+e.Operation+" "+kind(e.Err)) },
	})
	patch := &compute.Patch{Add: []armid.ID{user(t, "demo")}, Type: compute.TypeBoth}
	if _, err := a.update(t, client, ref(t, vmID), `"1"`, patch); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{setID: false, vmID: true} {
		if seen, err := client.Get(t.Context(), ref(t, id)); err != nil || seen.Has(user(t, "demo")) != want {
			t.Errorf("%s: got %+v, %v", id, seen, err)
		}
	}
	if _, err := a.update(t, client, ref(t, vmID), `"1"`, patch); kind(err) != "!precondition" {
		t.Errorf("got %v", err)
	}
	slices.Sort(ended)
	want := []string{"ScaleSet get none", "VirtualMachine get none", "VirtualMachine update !precondition", "VirtualMachine update none"}
	if diff := cmp.Diff(want, ended); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

func TestMissingRightIsNamedByKind(t *testing.T) {
	eachKind(t, func(t *testing.T, id string) {
		doc := document()
		doc.RoleAssignments = nil
		a := start(t, azuresim.Config{State: doc})
		_, read := a.arm(t).Get(t.Context(), ref(t, id))
		_, write := a.update(t, a.arm(t), ref(t, id), `"1"`, &compute.Patch{Add: []armid.ID{user(t, "demo")}, Type: compute.TypeBoth})
		for verb, err := range map[string]error{"read": read, "write": write} {
			var denied *armclient.DeniedError
			if !errors.As(err, &denied) || !strings.Contains(denied.Message, "perform action '"+denied.Action+"'") || !strings.HasSuffix(denied.Action, "/"+verb) {
				t.Errorf("%s: got %v, want the action that ARM names", verb, err)
			}
		}
	})
}

// kind names an error's type, and with ! in front of it one of which it is sure
// that ARM did nothing.
func kind(err error) string {
	var (
		notStarted  *armclient.NotStartedError
		notFound    *armclient.NotFoundError
		deleting    *armclient.DeletingError
		throttled   *armclient.ThrottledError
		conflict    *armclient.ConflictError
		failed      *armclient.PreconditionFailedError
		bad         *armclient.BadIdentitiesError
		denied      *armclient.DeniedError
		unavailable *armclient.UnavailableError
	)
	sure := ""
	if errors.As(err, &notStarted) {
		sure = "!"
	}
	for name, is := range map[string]bool{
		"not found": errors.As(err, &notFound), "deleting": errors.As(err, &deleting), "throttled": errors.As(err, &throttled),
		"conflict": errors.As(err, &conflict), "precondition": errors.As(err, &failed), "bad": errors.As(err, &bad),
		"denied": errors.As(err, &denied), "unavailable": errors.As(err, &unavailable),
	} {
		if is {
			return sure + name
		}
	}
	return "none"
}

func TestUpdateFails(t *testing.T) { eachKind(t, updateFails) }

func updateFails(t *testing.T, id string) {
	for name, test := range map[string]struct {
		response fault.Response
		want     string
	}{
		"not found":                           {fault.Response{Status: 404, Code: "ResourceNotFound", Message: "no such scale set"}, "!not found"},
		"somebody was faster":                 {fault.Response{Status: 412, Code: "PreconditionFailed", Message: "etag"}, "!precondition"},
		"another operation":                   {fault.Response{Status: 409, Code: "OperationNotAllowed", Message: "busy"}, "!conflict"},
		"throttled":                           {fault.Response{Status: 429, Code: "OperationNotAllowed", Message: "slow", Headers: map[string]string{"Retry-After": "7"}}, "!throttled"},
		"no right":                            {fault.Response{Status: 403, Code: "AuthorizationFailed", Message: "no"}, "!denied"},
		"token refused":                       {fault.Response{Status: 401, Code: "InvalidAuthenticationToken", Message: "no"}, "!denied"},
		"an identity is bad":                  {fault.Response{Status: 400, Code: "FailedIdentityOperation", Message: "Identity operation for resource failed: '" + strings.ToUpper(identities+"demo") + "'."}, "!bad"},
		"an unnamed one is bad":               {fault.Response{Status: 400, Code: "FailedIdentityOperation", Message: "Identity operation failed."}, "!bad"},
		"an unknown code":                     {fault.Response{Status: 400, Code: "Odd", Message: "what"}, "!unavailable"},
		"ARM breaks":                          {fault.Response{Status: 500, Code: "InternalServerError", Message: "oops"}, "unavailable"},
		"ARM is overloaded":                   {fault.Response{Status: 503, Code: "ServerBusy", Message: "later", Headers: map[string]string{"Retry-After": "9"}}, "unavailable"},
		"the connection breaks":               {fault.Response{Drop: true}, "unavailable"},
		"the operation fails":                 {fault.Response{FailOperation: true, Code: "FailedIdentityOperation", Message: "'" + identities + "demo' is gone"}, "bad"},
		"the operation fails without a cause": {fault.Response{FailOperation: true, Code: "InternalOperationError", Message: "oops"}, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := start(t, azuresim.Config{State: document()})
			if _, err := a.Faults.Add(fault.Fault{Match: fault.Match{Surface: journal.ARM, Method: http.MethodPatch}, Response: test.response}); err != nil {
				t.Fatal(err)
			}
			patch := &compute.Patch{Add: []armid.ID{user(t, "demo"), user(t, "demo-2")}, Type: compute.TypeBoth}
			_, err := a.update(t, a.arm(t), ref(t, id), `"1"`, patch)
			if got := kind(err); got != test.want {
				t.Errorf("got %s (%v), want %s", got, err, test.want)
			}
			if got := a.sent(http.MethodPatch); got != 1 {
				t.Errorf("the patch was sent %d times", got)
			}
			checkDetails(t, id, err)
		})
	}
}

func checkDetails(t *testing.T, id string, err error) {
	t.Helper()
	var throttled *armclient.ThrottledError
	if errors.As(err, &throttled) && throttled.After != 7*time.Second {
		t.Errorf("asks to wait %s", throttled.After)
	}
	var unavailable *armclient.UnavailableError
	if errors.As(err, &unavailable) && strings.Contains(err.Error(), "later") && unavailable.After != 9*time.Second {
		t.Errorf("asks to wait %s", unavailable.After)
	}
	var denied *armclient.DeniedError
	action := map[string]string{setID: "Microsoft.Compute/virtualMachineScaleSets/write", vmID: "Microsoft.Compute/virtualMachines/write"}[id]
	if errors.As(err, &denied) && (denied.Action != action || denied.Scope != strings.ToLower(id)) {
		t.Errorf("got %+v", denied)
	}
	var bad *armclient.BadIdentitiesError
	if errors.As(err, &bad) && strings.Contains(bad.Message, "'") && (len(bad.IDs) != 1 || bad.IDs[0] != user(t, "demo")) {
		t.Errorf("blames %v", bad.IDs)
	}
}

func TestReadsAreRepeatedAndPatchesAreNot(t *testing.T) { eachKind(t, readsAreRepeated) }

func readsAreRepeated(t *testing.T, id string) {
	a := start(t, azuresim.Config{State: document()})
	if _, err := a.Faults.Add(fault.Fault{Match: fault.Match{Surface: journal.ARM, Method: http.MethodGet}, Times: 2, Response: fault.Response{Status: 503, Code: "x", Message: "y"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.arm(t).Get(t.Context(), ref(t, id)); err != nil {
		t.Fatal(err)
	}
	if got := a.sent(http.MethodGet); got != 3 {
		t.Errorf("sent %d reads, want 3", got)
	}
	if _, err := a.Faults.Add(fault.Fault{Match: fault.Match{Surface: journal.ARM, Method: http.MethodGet}, Times: 1, Response: fault.Response{Status: 429, Code: "x", Message: "y", Headers: map[string]string{"Retry-After": "30"}}}); err != nil {
		t.Fatal(err)
	}
	_, err := a.arm(t).Get(t.Context(), ref(t, id))
	var throttled *armclient.ThrottledError
	if !errors.As(err, &throttled) || throttled.After != 30*time.Second || a.sent(http.MethodGet) != 4 {
		t.Errorf("got %v after %d reads, want a throttled one after 4", err, a.sent(http.MethodGet))
	}
}

func TestAnswersThatTheSimulatorDoesNotGive(t *testing.T) {
	eachKind(t, answersThatTheSimulatorDoesNotGive)
}

func answersThatTheSimulatorDoesNotGive(t *testing.T, id string) {
	demo := user(t, "demo").String()
	for name, test := range map[string]struct {
		wire wire
		want string
	}{
		"being deleted":        {wire{status: 200, body: `{"properties":{"provisioningState":"Deleting"}}`}, "deleting"},
		"an unknown type":      {wire{status: 200, body: `{"identity":{"type":"Actor"}}`}, "unavailable"},
		"no JSON":              {wire{status: 200, body: `<html>`}, "unavailable"},
		"an error without one": {wire{status: 404, body: ``}, "not found"},
		"nothing at all":       {wire{status: 200, body: `{}`}, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := test.wire.arm(t).Get(t.Context(), ref(t, id)); kind(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	odd := &wire{status: 200, body: `{"etag":"e","properties":{"provisioningState":"updating"},"identity":{"type":"userassigned","userAssignedIdentities":{"` + strings.ToUpper(demo) + `":null,"/odd":{}}}}`}
	seen, err := odd.arm(t).Get(t.Context(), ref(t, id))
	if err != nil || !seen.Updating || !seen.Has(user(t, "demo")) || len(seen.Unreadable) != 1 || seen.Type != compute.TypeUserAssigned {
		t.Errorf("got %+v, %v", seen, err)
	}
	// A name that goes on is another identity's.
	longer := &wire{status: 400, body: `{"error":{"code":"FailedIdentityOperation","message":"'` + demo + `-2' and ` + demo + `_3: gone"}}`}
	_, err = longer.arm(t).Begin(t.Context(), ref(t, id), "e", &compute.Patch{Add: []armid.ID{user(t, "demo"), user(t, "demo-2")}, Type: compute.TypeUserAssigned})
	var bad *armclient.BadIdentitiesError
	if !errors.As(err, &bad) || len(bad.IDs) != 1 || bad.IDs[0] != user(t, "demo-2") {
		t.Errorf("got %v", err)
	}
}
