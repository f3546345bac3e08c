package armclient_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
)

// said is an error of ARM's: a status, which an operation's failure lacks, a code
// and a message.
type said struct {
	status        int
	code, message string
}

// wrapped is how ARM passes on what the service of managed identities answered.
func wrapped(status, inner string) string {
	return "Identity operation for resource '" + setID + "' failed with error 'Failed to perform resource identity operation. Status: '" + status + "'. Response: '" + inner + "'.'."
}

func linked(action, scopes string) string {
	return "The client 'c' with object id 'o' has permission to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' on scope '" + setID +
		"'; however, it does not have permission to perform action(s) '" + action + "' on the linked scope(s) '" + scopes + "' (respectively) or the linked scope(s) are invalid."
}

const (
	assign = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
	subnet = group + "/providers/Microsoft.Network/virtualNetworks/v/subnets/s"
)

// failure is what ARM says, what that is, and which identities it names.
type failure struct {
	said said
	want string
	bad  []string
}

// documented are the failures that ARM is known for, and what they are. The
// request attaches demo and demo-2.
func documented() map[string]failure {
	demo, demo2 := identities+"demo", identities+"demo-2"
	return map[string]failure{
		"an identity does not exist":                       {said{400, "FailedIdentityOperation", wrapped("BadRequest", `{"error":{"code":"BadRequest","message":"Resource '`+demo+`' was not found."}}`)}, "bad", []string{"demo"}},
		"one is named in upper case, in escaped quotes":    {said{400, "FailedIdentityOperation", wrapped("NotFound", `{\"error\":{\"message\":\"Resource \"`+strings.ToUpper(demo2)+`\" was not found.\"}}`)}, "bad", []string{"demo-2"}},
		"two are named":                                    {said{400, "FailedIdentityOperation", "'" + demo + "," + demo2 + "'"}, "bad", []string{"demo", "demo-2"}},
		"none is named":                                    {said{400, "FailedIdentityOperation", "Identity operation for resource '" + setID + "' failed."}, "bad", nil},
		"one that is there already is named, none of ours": {said{400, "FailedIdentityOperation", wrapped("NotFound", "'"+identities+"old' was not found")}, "unavailable", nil},
		"identities beyond the limit":                      {said{400, "InvalidParameter", "The request exceeds the limit '150' in one request."}, "unavailable", nil},
		"an identity may not be assigned":                  {said{403, "LinkedAuthorizationFailed", linked(assign, demo)}, "bad", []string{"demo"}},
		"some identity may not be assigned":                {said{403, "LinkedAuthorizationFailed", "The client does not have permission."}, "bad", nil},
		"one that is there already may not be assigned":    {said{403, "LinkedAuthorizationFailed", linked(assign, identities+"old")}, "denied Managed Identity Operator", nil},
		"the subnet may not be joined":                     {said{403, "LinkedAuthorizationFailed", linked("Microsoft.Network/virtualNetworks/subnets/join/action", subnet)}, "denied Network Contributor", nil},
		"the resource may not be written":                  {said{403, "AuthorizationFailed", "The client 'c' with object id 'o' does not have authorization to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' over scope '" + setID + "' or the scope is invalid."}, "denied Virtual Machine Contributor", nil},
		"a policy of the organisation":                     {said{403, "RequestDisallowedByPolicy", "Resource 'pool' was disallowed by policy."}, "denied Virtual Machine Contributor", nil},
		"the token is not taken":                           {said{401, "InvalidAuthenticationToken", "The access token is invalid."}, "denied Virtual Machine Contributor", nil},
		"throttled by Compute":                             {said{429, "OperationNotAllowed", "The server rejected the request because too many requests have been received for this subscription."}, "throttled", nil},
		"throttled by ARM":                                 {said{429, "SubscriptionRequestsThrottled", "Number of 'write' requests for subscription 's' exceeded."}, "throttled", nil},
		"throttled, with an identity in the text":          {said{429, "TooManyRequests", "'" + demo + "'"}, "throttled", nil},
		"throttled behind ARM":                             {said{400, "FailedIdentityOperation", wrapped("TooManyRequests", "")}, "throttled", nil},
		"throttled behind ARM, with an identity named":     {said{400, "FailedIdentityOperation", wrapped("TooManyRequests", `{"error":{"code":"TooManyRequests","message":"`+demo+`"}}`)}, "throttled", nil},
		"down behind ARM, with an identity named":          {said{400, "FailedIdentityOperation", wrapped("InternalServerError", demo)}, "unavailable", nil},
		"another operation runs":                           {said{409, "OperationNotAllowed", "The request failed due to conflict with a concurrent request."}, "conflict", nil},
		"another operation runs, with an identity named":   {said{409, "Conflict", "An operation with '" + demo + "' runs."}, "conflict", nil},
		"a later operation took over":                      {said{409, "OperationPreempted", "Operation execution has been preempted by a more recent operation."}, "conflict", nil},
		"somebody was faster":                              {said{412, "PreconditionFailed", "The etag does not match."}, "precondition", nil},
		"the group is being deleted":                       {said{409, "ResourceGroupBeingDeleted", "The resource group 'MC_nodes' is in deprovisioning state."}, "deleting", nil},
		"the scale set does not exist":                     {said{404, "ResourceNotFound", "The Resource 'Microsoft.Compute/virtualMachineScaleSets/pool' under resource group 'MC_nodes' was not found."}, "not found", nil},
		"the subscription does not exist":                  {said{404, "SubscriptionNotFound", "The subscription 's' could not be found."}, "not found", nil},
		"an internal error":                                {said{500, "InternalServerError", "oops"}, "unavailable", nil},
		"an internal error, with an identity in the text":  {said{500, "InternalExecutionError", "'" + demo + "'"}, "unavailable", nil},
		"a time-out":                                       {said{504, "GatewayTimeout", "The gateway did not receive a response from 'Microsoft.Compute' within the specified time period."}, "unavailable", nil},
		"an error that nobody knows":                       {said{400, "Odd", "what"}, "unavailable", nil},
	}
}

// verdict is kind with the role that is missing, without the mark of certainty.
func verdict(err error) string {
	out := strings.TrimPrefix(kind(err), "!")
	if denied, ok := errors.AsType[*armclient.DeniedError](err); ok {
		return out + " " + denied.Role
	}
	return out
}

func badIDs(err error) (names []string) {
	if bad, ok := errors.AsType[*armclient.BadIdentitiesError](err); ok {
		for _, id := range bad.IDs {
			names = append(names, id.Name())
		}
	}
	return names
}

// TestDocumentedFailures: a failure is the same one whether ARM refuses the
// request or its operation fails.
func TestDocumentedFailures(t *testing.T) {
	patch := &compute.Patch{Add: []armid.ID{user(t, "demo"), user(t, "demo-2")}, Type: compute.TypeBoth}
	for name, test := range documented() {
		check := func(t *testing.T, err error) {
			t.Helper()
			if got := verdict(err); got != test.want {
				t.Errorf("got %s: %v, want %s", got, err, test.want)
			}
			if diff := cmp.Diff(test.bad, badIDs(err)); diff != "" {
				t.Errorf("identities (-want +got):\n%s", diff)
			}
			if err != nil && (len(test.bad) > 0 || test.want == "unavailable") && !strings.Contains(err.Error(), test.said.message) {
				t.Errorf("%v does not hold ARM's words", err)
			}
		}
		t.Run(name+", refused", func(t *testing.T) {
			body, err := json.Marshal(map[string]any{"error": map[string]string{"code": test.said.code, "message": test.said.message}})
			if err != nil {
				t.Fatal(err)
			}
			refusing := &wire{status: test.said.status, header: http.Header{}, body: string(body)}
			_, err = refusing.arm(t).Begin(t.Context(), ref(t, setID), `"1"`, patch)
			check(t, err)
			if refused := test.said.status < 500; refused != errors.As(err, new(*armclient.NotStartedError)) {
				t.Errorf("%v is sure to have done nothing: %v", err, !refused)
			}
		})
		t.Run(name+", failed", func(t *testing.T) {
			if test.said.code == "RequestDisallowedByPolicy" || test.said.code == "OperationNotAllowed" {
				return // not codes of operations
			}
			a := start(t, azuresim.Config{State: document()})
			a.play(t, fault.Match{Method: http.MethodPatch}, 1, fault.Response{FailOperation: true, Code: test.said.code, Message: test.said.message})
			_, err := a.update(t, a.arm(t), ref(t, setID), `"1"`, patch)
			check(t, err)
			if errors.As(err, new(*armclient.NotStartedError)) {
				t.Errorf("%v is sure to have done nothing", err)
			}
		})
	}
}

// TestThrottlingBehindARMKeepsOff: it comes without 429 and without a time.
func TestThrottlingBehindARMKeepsOff(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.play(t, fault.Match{Method: http.MethodPatch}, 1, fault.Response{FailOperation: true, Code: "FailedIdentityOperation", Message: wrapped("TooManyRequests", "")})
	client := a.arm(t)
	if _, err := a.update(t, client, ref(t, setID), `"1"`, addDemo(t)); verdict(err) != "throttled" {
		t.Errorf("got %v", err)
	}
	wait, ok := errors.AsType[*armclient.ThrottledError](client.Ready(ref(t, setID), time.Time{}))
	if !ok || wait.Own || wait.After < 9*time.Second {
		t.Errorf("got %v, want a rest", wait)
	}
	if err := client.Ready(ref(t, vmID), time.Time{}); err != nil {
		t.Errorf("another resource: %v", err)
	}
}

func TestDeniedSaysWhatIsMissing(t *testing.T) {
	for name, test := range map[string]struct {
		message, action, scope string
	}{
		"what ARM names":              {linked("Microsoft.Network/virtualNetworks/subnets/join/action", subnet), "Microsoft.Network/virtualNetworks/subnets/join/action", subnet},
		"else what was asked for":     {"Forbidden.", "Microsoft.Compute/virtualMachineScaleSets/write", strings.ToLower(setID)},
		"as we spell it, if it is it": {"does not have authorization to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' over scope '" + setID + "'", "Microsoft.Compute/virtualMachineScaleSets/write", strings.ToLower(setID)},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := json.Marshal(map[string]any{"error": map[string]string{"code": "AuthorizationFailed", "message": test.message}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = (&wire{status: 403, body: string(body)}).arm(t).Begin(t.Context(), ref(t, setID), `"1"`, addDemo(t))
			denied, ok := errors.AsType[*armclient.DeniedError](err)
			if !ok || denied.Action != test.action || denied.Scope != test.scope {
				t.Errorf("got %+v (%v)", denied, err)
			}
		})
	}
}

// FuzzFailures: whatever ARM answers, there is an error of one type, and it names
// identities of the request only.
func FuzzFailures(f *testing.F) {
	for _, test := range documented() {
		f.Add(test.said.status, test.said.code, test.said.message, "7")
	}
	f.Fuzz(func(t *testing.T, status int, code, message, after string) {
		if status < 400 || status > 599 {
			return
		}
		body, err := json.Marshal(map[string]any{"error": map[string]any{"code": code, "message": message, "details": []any{map[string]string{"message": message}}}})
		if err != nil {
			return
		}
		answer := &wire{status: status, header: http.Header{"Retry-After": {strings.TrimSpace(after)}}, body: string(body)}
		patch := &compute.Patch{Add: []armid.ID{user(t, "demo"), user(t, "demo-2")}, Type: compute.TypeBoth}
		_, err = answer.arm(t).Begin(t.Context(), ref(t, setID), `"1"`, patch)
		if err == nil || kind(err) == "none" {
			t.Fatalf("got %v", err)
		}
		for _, name := range badIDs(err) {
			if name != "demo" && name != "demo-2" || !strings.Contains(strings.ToLower(message), name) {
				t.Errorf("%q blames %s", message, name)
			}
		}
	})
}
