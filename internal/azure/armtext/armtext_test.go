package armtext_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armtext"
)

const (
	group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/Apps.(eu)_1"
	demo  = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo"
	other = group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/other"
	set   = group + "/providers/Microsoft.Compute/virtualMachineScaleSets/pool"
)

func ids(t testing.TB, texts ...string) []armid.ID {
	t.Helper()
	var out []armid.ID
	for _, text := range texts {
		id, err := armid.ParseUserAssigned(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, id)
	}
	return out
}

func TestNamed(t *testing.T) {
	for name, test := range map[string]struct {
		message string
		want    []string
		others  bool
	}{
		"none": {"Identity operation failed.", nil, false},
		"in single quotes, inside an error inside an error": {
			"Identity operation for resource '" + set + "' failed with error 'Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{\"error\":{\"code\":\"BadRequest\",\"message\":\"Resource '" + demo + "' was not found.\"}}'.'.",
			[]string{demo}, false,
		},
		"in double quotes that are escaped":  {`resource \"` + demo + `\" is gone`, []string{demo}, false},
		"in typographic quotes":              {"the identity “" + demo + "” is gone", []string{demo}, false},
		"without quotes, before a full stop": {"There is no " + demo + ".", []string{demo}, false},
		"in brackets":                        {"[" + demo + "]", []string{demo}, false},
		"with slashes that JSON hides":       {strings.ReplaceAll(demo, "/", `\/`), []string{demo}, false},
		"with slashes that a URL hides":      {strings.ReplaceAll(demo, "/", "%2F"), []string{demo}, false},
		"in upper case":                      {strings.ToUpper(demo), []string{demo}, false},
		"in a list":                          {"linked scope(s) '" + demo + "," + strings.ToLower(other) + "'", []string{demo, other}, false},
		"as a part of a longer name":         {"'" + demo + "-2' and " + demo + "_3", nil, true},
		"one that is not the request's":      {"'" + group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/foreign'", nil, true},
		"one of each":                        {"'" + demo + "' and '" + demo + "s'", []string{demo}, true},
		"by name alone":                      {"the identity demo is gone", nil, false},
		"another kind of resource":           {"'" + set + "' is busy", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			named, others := armtext.Named(test.message, ids(t, demo, other))
			if diff := cmp.Diff(ids(t, test.want...), named, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b armid.ID) bool { return a == b })); diff != "" {
				t.Errorf("named (-want +got):\n%s", diff)
			}
			if others != test.others {
				t.Errorf("others are named: %v", others)
			}
		})
	}
}

func TestCauseOf(t *testing.T) {
	wrapped := func(status string) string {
		return "Identity operation for resource '" + set + "' failed with error 'Failed to perform resource identity operation. Status: '" + status + "'. Response: ''.'."
	}
	for name, test := range map[string]struct {
		message string
		want    armtext.Cause
	}{
		"nothing wrapped":             {"The identity is gone.", armtext.None},
		"a bad request":               {wrapped("BadRequest"), armtext.None},
		"not found":                   {wrapped("NotFound"), armtext.None},
		"throttled":                   {wrapped("TooManyRequests"), armtext.Throttled},
		"throttled, by number":        {"failed. StatusCode: 429, ReasonPhrase: 'Too Many Requests'", armtext.Throttled},
		"throttled, in JSON":          {`Response: '{"error":{"code":"TooManyRequests","message":"slow"}}'`, armtext.Throttled},
		"throttled, in escaped JSON":  {`{\"error\":{\"code\":\"TooManyRequests\"}}`, armtext.Throttled},
		"an internal error":           {wrapped("InternalServerError"), armtext.Down},
		"not available":               {wrapped("ServiceUnavailable"), armtext.Down},
		"a timeout":                   {wrapped("GatewayTimeout"), armtext.Down},
		"a number that is no status":  {"barcode 429", armtext.None},
		"a name that holds the words": {"resource 'toomanyrequests' not found", armtext.None},
	} {
		t.Run(name, func(t *testing.T) {
			if got := armtext.CauseOf(test.message); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	assign := "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
	for name, test := range map[string]struct {
		message, action, role string
		scopes                []string
	}{
		"on the resource": {
			"The client 'c' with object id 'o' does not have authorization to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' over scope '" + set + "' or the scope is invalid. If access was recently granted, please refresh your credentials.",
			"Microsoft.Compute/virtualMachineScaleSets/write", "Virtual Machine Contributor", []string{set},
		},
		"on identities": {
			"The client 'c' with object id 'o' has permission to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' on scope '" + set + "'; however, it does not have permission to perform action(s) '" + assign + "' on the linked scope(s) '" + demo + "," + other + "' (respectively) or the linked scope(s) are invalid.",
			assign, "Managed Identity Operator", []string{demo, other},
		},
		"on a subnet": {
			"however, it does not have permission to perform action \"Microsoft.Network/virtualNetworks/subnets/join/action\" on the linked scope \"" + group + "/providers/Microsoft.Network/virtualNetworks/v/subnets/s\".",
			"Microsoft.Network/virtualNetworks/subnets/join/action", "Network Contributor", []string{group + "/providers/Microsoft.Network/virtualNetworks/v/subnets/s"},
		},
		"on something that the controller has no business with": {
			"does not have authorization to perform action 'Microsoft.Storage/x/read' over scope '" + group + "'",
			"Microsoft.Storage/x/read", "", []string{group},
		},
		"not said": {"Forbidden.", "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			action, scopes := armtext.Missing(test.message)
			if action != test.action || armtext.Role(action) != test.role {
				t.Errorf("action is %q, role %q", action, armtext.Role(action))
			}
			if diff := cmp.Diff(test.scopes, scopes, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("scopes (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzNamed: whatever the message, only the request's own identities are named,
// each of which its text does hold.
func FuzzNamed(f *testing.F) {
	f.Add("Resource '" + demo + "' was not found.")
	f.Add(strings.ReplaceAll(other, "/", `\/`) + "%2F" + demo + "-2")
	f.Add("does not have permission to perform action(s) 'a/b' on the linked scope(s) '/,,'")
	f.Fuzz(func(t *testing.T, message string) {
		all := ids(t, demo, other)
		named, _ := armtext.Named(message, all)
		for _, id := range named {
			if !slices.Contains(all, id) || !strings.Contains(strings.ToLower(message), strings.ToLower(id.Name())) {
				t.Errorf("%q names %s", message, id)
			}
		}
		if none, _ := armtext.Named(message, nil); len(none) != 0 {
			t.Errorf("%q names %v of no identities", message, none)
		}
		armtext.CauseOf(message)
		if action, scopes := armtext.Missing(message); (action == "") != (len(scopes) == 0) && action == "" {
			t.Errorf("%q has scopes %v and no action", message, scopes)
		}
	})
}
