package state

import (
	"maps"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// The actions that the surfaces ask about, as Azure spells them.
const (
	actionAssign = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
	// The data actions: no control-plane role gives them.
	ActionGetSecret = "Microsoft.KeyVault/vaults/secrets/getSecret/action"
	ActionReadBlobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
)

// The verbs of an action on a compute resource.
const (
	verbRead  = "read"
	verbWrite = "write"
)

// actionOn is the action on a compute resource of that ID.
func actionOn(id armid.ID, verb string) string { return ResourceType(id) + "/" + verb }

// roles returns which of the actions above each built-in role gives.
func roles() map[string][]string {
	read := []string{TypeScaleSet + "/" + verbRead, TypeVirtualMachine + "/" + verbRead}
	write := append([]string{TypeScaleSet + "/" + verbWrite, TypeVirtualMachine + "/" + verbWrite}, read...)
	control := append([]string{actionAssign}, write...)
	return map[string][]string{
		"owner":                         control,
		"contributor":                   control,
		"reader":                        read,
		"virtual machine contributor":   write,
		"managed identity operator":     {actionAssign},
		"managed identity contributor":  nil, // reads and writes identities; may not assign them
		"key vault secrets user":        {ActionGetSecret},
		"key vault secrets officer":     {ActionGetSecret},
		"key vault administrator":       {ActionGetSecret},
		"storage blob data reader":      {ActionReadBlobs},
		"storage blob data contributor": {ActionReadBlobs},
		"storage blob data owner":       {ActionReadBlobs},
	}
}

type assignment struct {
	model.RoleAssignment
	principal string   // in lower case
	scope     string   // in lower case, no trailing slash; empty: everything
	actions   []string // what the role gives
}

func (t *tables) addAssignment(m model.RoleAssignment) error {
	principal, err := guid("principal", m.Principal)
	if err != nil {
		return err
	}
	known := roles()
	actions, ok := known[strings.ToLower(m.Role)]
	if !ok {
		return invalid("role %q is not known: use one of %s", m.Role, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	scope := strings.ToLower(strings.TrimSuffix(m.Scope, "/"))
	if scope != "" && !strings.HasPrefix(scope, "/subscriptions/") || m.Scope == "" {
		return invalid("scope %q is none: want /subscriptions/S, a resource group's or a resource's ID", m.Scope)
	}
	t.assignments = append(t.assignments, assignment{RoleAssignment: m, principal: principal, scope: scope, actions: actions})
	return nil
}

// Authorize returns an [*AuthorizationError] unless a role gives the principal
// the action at scope or above it.
func (s *State) Authorize(principal, action, scope string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t.authorize(principal, action, scope)
}

func (t *tables) authorize(principal, action, scope string) error {
	for _, a := range t.assignments {
		if strings.EqualFold(a.principal, principal) && a.covers(scope) && slices.Contains(a.actions, action) {
			return nil
		}
	}
	return &AuthorizationError{Principal: principal, Action: action, Scope: scope}
}

// covers reports whether scope is the assignment's or lies below it.
func (a assignment) covers(scope string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(scope), a.scope)
	return ok && (rest == "" || rest[0] == '/')
}
