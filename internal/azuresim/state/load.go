package state

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// vaultType is the resource type of a key vault, folded.
const vaultType = "microsoft.keyvault/vaults"

// defaultLocation is where a resource stands that names no location.
const defaultLocation = "westeurope"

// add puts everything of doc in, in the order in which one part names another.
func (t *tables) add(doc model.Document, now time.Time) error {
	if doc.Tenant != "" {
		tenant, err := guid("tenant", doc.Tenant)
		if err != nil {
			return err
		}
		t.tenant = tenant
	}
	return firstError(
		each("identity", doc.Identities, t.addIdentity),
		each("poison", doc.Poison, t.addPoison),
		each("application", doc.Applications, t.addApplication),
		each("scale set", doc.ScaleSets, func(m model.ScaleSet) error { return t.addResource(m, TypeScaleSet) }),
		each("virtual machine", doc.VirtualMachines, func(m model.VirtualMachine) error { return t.addResource(m, TypeVirtualMachine) }),
		each("node", doc.Nodes, t.addNode),
		each("role assignment", doc.RoleAssignments, t.addAssignment),
		each("vault", doc.Vaults, func(v model.Vault) error { return t.addVault(v, now) }),
		each("storage account", doc.StorageAccounts, func(a model.StorageAccount) error { return t.addAccount(a, now) }),
	)
}

// each returns a step that adds every item and says which one is wrong.
func each[T any](what string, items []T, add func(T) error) func() error {
	return func() error {
		for i, item := range items {
			if err := add(item); err != nil {
				return fmt.Errorf("adding %s %d: %w", what, i+1, err)
			}
		}
		return nil
	}
}

func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (t *tables) addIdentity(m model.Identity) error {
	id, err := armid.ParseUserAssigned(m.ID)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, ok := t.identities[id]; ok {
		return invalid("identity %s is there already", m.ID)
	}
	clientID, principalID, err := t.principal(m.ClientID, m.PrincipalID)
	if err != nil {
		return err
	}
	t.identities[id] = &Identity{ID: id, Spelling: armSpelling(m.ID), ClientID: clientID, PrincipalID: principalID}
	return nil
}

func (t *tables) addApplication(m model.Application) error {
	clientID, principalID, err := t.principal(m.ClientID, m.PrincipalID)
	if err != nil {
		return err
	}
	if slices.Contains(m.Secrets, "") {
		return invalid("application %q has an empty secret", m.Name)
	}
	name := m.Name
	if name == "" {
		name = clientID
	}
	for _, a := range t.applications {
		if strings.EqualFold(a.name, name) {
			return invalid("application %q is there already", name)
		}
	}
	certificates, err := readCertificates(m.Certificates)
	if err != nil {
		return err
	}
	t.applications[clientID] = &application{
		name: name, clientID: clientID, principalID: principalID, secrets: slices.Clone(m.Secrets), certificates: certificates,
	}
	return nil
}

// addResource adds a scale set or a virtual machine, as kind says.
func (t *tables) addResource(m model.Resource, kind string) error {
	id, err := armid.Parse(m.ID)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if ResourceType(id) != kind {
		return invalid("%s is not the ID of a %s: want …/providers/%s/NAME", m.ID, inWords(kind), kind)
	}
	if _, ok := t.resources[id]; ok {
		return invalid("%s is there already", m.ID)
	}
	v := newResource(id, m)
	if m.SystemAssigned != nil {
		clientID, principalID, err := t.principal(m.SystemAssigned.ClientID, m.SystemAssigned.PrincipalID)
		if err != nil {
			return err
		}
		v.shown.system = &model.SystemAssigned{ClientID: clientID, PrincipalID: principalID}
	}
	if err := firstError(func() error { return t.attachAll(v, m) }, func() error { return t.arrange(v, m) }); err != nil {
		return err
	}
	v.usable = v.shown.clone()
	t.resources[id] = v
	return nil
}

// gone is the principal of an identity that was deleted.
const gone = "gone"

func (t *tables) attachAll(v *resource, m model.Resource) error {
	null := map[armid.ID]bool{}
	for _, s := range m.NullPrincipals {
		user, err := armid.ParseUserAssigned(s)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		null[user] = true
	}
	for _, s := range m.UserAssigned {
		user, err := armid.ParseUserAssigned(s)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		on := attached{spelling: armSpelling(s), principal: gone}
		if identity, ok := t.identities[user]; ok && !null[user] {
			on.principal = identity.PrincipalID
		} else if !null[user] {
			return invalid("%s has the identity %s, which is not there: add it first", m.ID, s)
		}
		v.shown.user[user] = on
	}
	for user := range null {
		if _, ok := v.shown.user[user]; !ok {
			return invalid("%s has the null principal %s, which is not among its userAssigned", m.ID, user)
		}
	}
	return nil
}

// arrange says what a scale set's instances are, or which one's a virtual machine
// is.
func (t *tables) arrange(v *resource, m model.Resource) error {
	if v.kind == TypeVirtualMachine {
		return t.joinScaleSet(v, m)
	}
	if m.ScaleSet != "" {
		return invalid("%s names a scale set, and is one", m.ID)
	}
	switch m.OrchestrationMode {
	case "", Uniform:
		v.mode = Uniform
	case Flexible:
		v.mode = Flexible
	default:
		return invalid("orchestrationMode of %s is %q: want Uniform or Flexible", m.ID, m.OrchestrationMode)
	}
	return nil
}

func (t *tables) joinScaleSet(v *resource, m model.Resource) error {
	if m.OrchestrationMode != "" {
		return invalid("%s has the orchestrationMode %q, and is no scale set", m.ID, m.OrchestrationMode)
	}
	if m.ScaleSet == "" {
		return nil
	}
	set, err := t.resource(m.ScaleSet, TypeScaleSet)
	if err != nil {
		return err
	}
	if set.mode != Flexible {
		return invalid("%s is an instance of %s, which is not Flexible: add it as a node of the scale set", m.ID, m.ScaleSet)
	}
	v.partOf = set.spelling
	return nil
}

func inWords(kind string) string {
	if kind == TypeVirtualMachine {
		return "virtual machine"
	}
	return "scale set"
}

func (t *tables) addNode(m model.Node) error {
	if m.Name == "" {
		return invalid("a node needs a name")
	}
	if _, ok := t.nodes[m.Name]; ok {
		return invalid("node %q is there already", m.Name)
	}
	v, err := t.oneOf(m.ScaleSet, m.VM)
	if err != nil {
		return fmt.Errorf("placing node %q: %w", m.Name, err)
	}
	if len(m.Prefixes) == 0 {
		return invalid("node %q needs the prefixes from which its IMDS is asked, such as 10.1.0.4/32", m.Name)
	}
	if err := t.checkPlace(m, v); err != nil {
		return err
	}
	prefixes := make([]netip.Prefix, 0, len(m.Prefixes))
	for _, p := range m.Prefixes {
		if !p.IsValid() {
			return invalid("node %q has an invalid prefix", m.Name)
		}
		p = p.Masked()
		if owner := t.ownerOf(p); owner != "" {
			return invalid("prefix %s is node %q's already", p, owner)
		}
		prefixes = append(prefixes, p)
	}
	n := &node{name: m.Name, resource: v, instance: m.Instance, vmID: v.uniqueID, prefixes: prefixes}
	if v.kind == TypeScaleSet {
		n.vmID = uuid.NewString()
	}
	t.nodes[m.Name] = n
	return nil
}

// checkPlace refuses a place where no second node can be, or none at all.
func (t *tables) checkPlace(m model.Node, v *resource) error {
	if v.mode == Flexible {
		return invalid("node %q is an instance of a Flexible scale set: name its virtual machine with vm", m.Name)
	}
	if v.kind == TypeVirtualMachine && m.Instance != 0 {
		return invalid("node %q has the instance number %d, and is a virtual machine of its own", m.Name, m.Instance)
	}
	for _, n := range t.nodes {
		switch {
		case n.resource != v || n.instance != m.Instance:
		case v.kind == TypeVirtualMachine:
			return invalid("node %q is the virtual machine %s already", n.name, v.spelling)
		default:
			return invalid("node %q is instance %d already", n.name, m.Instance)
		}
	}
	return nil
}

func (t *tables) ownerOf(p netip.Prefix) string {
	for _, n := range t.nodes {
		if slices.Contains(n.prefixes, p) {
			return n.name
		}
	}
	return ""
}

// oneOf returns the scale set or the virtual machine, of which exactly one is
// named.
func (t *tables) oneOf(scaleSet, vm string) (*resource, error) {
	switch {
	case scaleSet != "" && vm != "":
		return nil, invalid("scaleSet and vm are both given: want one of them")
	case vm != "":
		return t.resource(vm, TypeVirtualMachine)
	case scaleSet != "":
		return t.resource(scaleSet, TypeScaleSet)
	}
	return nil, invalid("neither scaleSet nor vm is given: want the ARM ID of one of them")
}

func (t *tables) resource(s, kind string) (*resource, error) {
	id, err := armid.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	v, ok := t.resources[id]
	if !ok || v.kind != kind {
		return nil, fmt.Errorf("%w: %s %s", ErrNotFound, inWords(kind), s)
	}
	return v, nil
}

// principal checks, or makes, the two GUIDs of a service principal, which must
// be new to the tenant.
func (t *tables) principal(clientID, principalID string) (client, object string, err error) {
	if client, err = guidOrNew("clientID", clientID); err != nil {
		return "", "", err
	}
	if object, err = guidOrNew("principalID", principalID); err != nil {
		return "", "", err
	}
	for _, used := range t.principals() {
		if used.ClientID == client {
			return "", "", invalid("clientID %s is taken", client)
		}
		if used.ObjectID == object {
			return "", "", invalid("principalID %s is taken", object)
		}
	}
	return client, object, nil
}

func guidOrNew(what, s string) (string, error) {
	if s == "" {
		return uuid.NewString(), nil
	}
	return guid(what, s)
}

// guid returns s in lower case, if it is a GUID in its usual form.
func guid(what, s string) (string, error) {
	parsed, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return "", invalid("%s %q is not a GUID", what, s)
	}
	return parsed.String(), nil
}

// armSpelling is how ARM answers an ID that was written as s: one segment in
// lower case, the rest as it came, so that no client may compare it as a string.
func armSpelling(s string) string {
	segments := strings.Split(strings.TrimSuffix(s, "/"), "/")
	for i, segment := range segments {
		if strings.EqualFold(segment, "resourceGroups") {
			segments[i] = "resourcegroups"
			break
		}
	}
	return strings.Join(segments, "/")
}
