package state_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
)

const (
	read      = "Microsoft.Compute/virtualMachineScaleSets/read"
	write     = "Microsoft.Compute/virtualMachineScaleSets/write"
	assign    = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
	readVM    = "Microsoft.Compute/virtualMachines/read"
	writeVM   = "Microsoft.Compute/virtualMachines/write"
	getSecret = state.ActionGetSecret
	readBlobs = state.ActionReadBlobs
)

func assigned(t *testing.T, role, scope string) *state.State {
	t.Helper()
	s := state.New(state.Options{})
	if err := s.Replace(model.Document{RoleAssignments: []model.RoleAssignment{{Principal: owner, Role: role, Scope: scope}}}); err != nil {
		t.Fatal(err)
	}
	return s
}

// The built-in roles: which of the actions each gives.
func TestRoles(t *testing.T) {
	for role, want := range map[string][]string{
		"Owner":                         {read, write, readVM, writeVM, assign},
		"Contributor":                   {read, write, readVM, writeVM, assign},
		"Reader":                        {read, readVM},
		"Virtual Machine Contributor":   {read, write, readVM, writeVM},
		"Managed Identity Operator":     {assign},
		"Managed Identity Contributor":  nil,
		"Key Vault Secrets User":        {getSecret},
		"Key Vault Secrets Officer":     {getSecret},
		"Key Vault Administrator":       {getSecret},
		"Storage Blob Data Reader":      {readBlobs},
		"Storage Blob Data Contributor": {readBlobs},
		"Storage Blob Data Owner":       {readBlobs},
	} {
		s := assigned(t, role, group)
		for _, action := range []string{read, write, readVM, writeVM, assign, getSecret, readBlobs} {
			err := s.Authorize(owner, action, scaleSetID)
			if (err == nil) != slices.Contains(want, action) {
				t.Errorf("%s, %s: got %v", role, action, err)
			}
			if err != nil && !as[*state.AuthorizationError](err) {
				t.Errorf("%s, %s: got a %T", role, action, err)
			}
		}
	}
}

func TestScopesAreInherited(t *testing.T) {
	for name, test := range map[string]struct {
		scope, asked string
		want         bool
	}{
		"everything":                 {"/", scaleSetID, true},
		"the subscription":           {"/subscriptions/s", scaleSetID, true},
		"with a slash":               {"/subscriptions/s/", scaleSetID, true},
		"in another case":            {"/SUBSCRIPTIONS/S", scaleSetID, true},
		"the group":                  {group, scaleSetID, true},
		"the resource":               {scaleSetID, scaleSetID, true},
		"asked in another case":      {scaleSetID, strings.ToUpper(scaleSetID), true},
		"a part of the resource":     {scaleSetID + "/virtualMachines/0", scaleSetID, false},
		"another group":              {"/subscriptions/s/resourceGroups/H", scaleSetID, false},
		"a group that begins alike":  {"/subscriptions/s/resourceGroups/G2", scaleSetID, false},
		"a group's name's beginning": {"/subscriptions/s/resourceGroups/G", "/subscriptions/s/resourceGroups/G2/providers/x", false},
		"another subscription":       {"/subscriptions/s2", scaleSetID, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := assigned(t, "Owner", test.scope).Authorize(owner, write, test.asked); (err == nil) != test.want {
				t.Errorf("got %v, want allowed: %v", err, test.want)
			}
		})
	}
}

func TestRolesAreOfTheirPrincipal(t *testing.T) {
	s := assigned(t, "Owner", "/subscriptions/s")
	if err := s.Authorize(strings.ToUpper(owner), write, scaleSetID); err != nil {
		t.Errorf("in another case: %v", err)
	}
	if err := s.Authorize(clientID(1), write, scaleSetID); err == nil {
		t.Error("another principal may do it too")
	}
}
