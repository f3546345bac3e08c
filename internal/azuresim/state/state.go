// Package state is the simulated Azure itself: identities, applications, scale
// sets and virtual machines, nodes, role assignments, vaults and storage accounts,
// and the rules by which they change.
//
// All of it stands behind one mutex and one injected clock. It starts no
// goroutine: an asynchronous operation ends when the clock says so, seen at the
// next call. It must not know HTTP: the surfaces turn requests into its calls
// and its typed errors into bodies.
package state

import (
	"cmp"
	"crypto/x509"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

// Options are the settings of a [State].
type Options struct {
	// Now is the clock; nil: the real one.
	Now func() time.Time
	// Settings are those until a document brings others.
	Settings settings.Settings
}

// State is safe for concurrent use. Make one with [New].
type State struct {
	now func() time.Time

	mu       sync.Mutex // protects all following fields
	t        tables
	settings settings.Settings
	random   *rand.Rand // draws latencies
}

// tables hold everything that a document describes, and the operations.
// GUIDs and the names of vaults and accounts are keys in lower case.
type tables struct {
	tenant       string
	identities   map[armid.ID]*Identity
	poison       map[armid.ID]poison.Poison
	applications map[string]*application
	resources    map[armid.ID]*resource // scale sets and virtual machines
	nodes        map[string]*node
	assignments  []assignment
	vaults       map[string]*vault
	accounts     map[string]*account // storage accounts
	operations   map[string]*operation
}

// Identity is a user-assigned managed identity.
type Identity struct {
	ID          armid.ID
	Spelling    string // the ID as ARM answers it
	ClientID    string
	PrincipalID string
}

type application struct {
	name, clientID, principalID string
	secrets                     []model.Secret
	certificates                []*x509.Certificate
}

type node struct {
	name     string
	resource *resource
	instance int
	vmID     string
	prefixes []netip.Prefix
}

func (n *node) model() model.Node {
	m := model.Node{Name: n.name, Instance: n.instance, Prefixes: slices.Clone(n.prefixes)}
	if n.resource.kind == TypeScaleSet {
		m.ScaleSet = n.resource.spelling
	} else {
		m.VM = n.resource.spelling
	}
	return m
}

// New returns an empty Azure with a new tenant.
func New(o Options) *State {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &State{now: o.Now, t: newTables(uuid.NewString())}
	s.behave(o.Settings)
	return s
}

func newTables(tenant string) tables {
	return tables{
		tenant:       tenant,
		identities:   map[armid.ID]*Identity{},
		poison:       map[armid.ID]poison.Poison{},
		applications: map[string]*application{},
		resources:    map[armid.ID]*resource{},
		nodes:        map[string]*node{},
		vaults:       map[string]*vault{},
		accounts:     map[string]*account{},
		operations:   map[string]*operation{},
	}
}

// Tenant returns the tenant's GUID.
func (s *State) Tenant() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t.tenant
}

// Replace loads doc in place of everything that was there. On an error nothing
// has changed.
func (s *State) Replace(doc model.Document) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := newTables(s.t.tenant)
	if err := firstError(checked(doc.Settings), func() error { return t.add(doc, s.now()) }); err != nil {
		return err
	}
	s.adopt(t, doc.Settings)
	return nil
}

// Add loads doc beside what is there and returns what it added, with the values
// that were left out filled in and secrets blanked. On an error nothing has changed.
func (s *State) Add(doc model.Document) (model.Document, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.t.clone()
	if err := firstError(checked(doc.Settings), func() error { return t.add(doc, s.now()) }); err != nil {
		return model.Document{}, err
	}
	fresh := t.added(s.t)
	s.adopt(t, doc.Settings)
	added := fresh.document()
	added.Settings = doc.Settings
	return added, nil
}

// Snapshot returns everything as a document, sorted, secrets blanked.
func (s *State) Snapshot() model.Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	doc := s.t.document()
	if s.settings != (settings.Settings{}) {
		doc.Settings = new(s.settings)
	}
	return doc
}

// clone copies the maps, not what they point to: add only ever puts new entries
// in, so the original stays whole when it fails.
func (t *tables) clone() tables {
	return tables{
		tenant:       t.tenant,
		identities:   maps.Clone(t.identities),
		poison:       maps.Clone(t.poison),
		applications: maps.Clone(t.applications),
		resources:    maps.Clone(t.resources),
		nodes:        maps.Clone(t.nodes),
		assignments:  slices.Clone(t.assignments),
		vaults:       maps.Clone(t.vaults),
		accounts:     maps.Clone(t.accounts),
		operations:   maps.Clone(t.operations),
	}
}

// added returns what t has and before had not.
func (t *tables) added(before tables) tables {
	return tables{
		tenant:       t.tenant,
		identities:   without(t.identities, before.identities),
		poison:       without(t.poison, before.poison),
		applications: without(t.applications, before.applications),
		resources:    without(t.resources, before.resources),
		nodes:        without(t.nodes, before.nodes),
		assignments:  t.assignments[len(before.assignments):],
		vaults:       without(t.vaults, before.vaults),
		accounts:     without(t.accounts, before.accounts),
	}
}

func without[K comparable, V any](all, some map[K]V) map[K]V {
	rest := maps.Clone(all)
	maps.DeleteFunc(rest, func(k K, _ V) bool { _, ok := some[k]; return ok })
	return rest
}

func (t *tables) document() model.Document {
	doc := model.Document{Tenant: t.tenant}
	for _, i := range sorted(t.identities, func(i *Identity) string { return i.ID.String() }) {
		doc.Identities = append(doc.Identities, model.Identity{ID: i.Spelling, ClientID: i.ClientID, PrincipalID: i.PrincipalID})
	}
	doc.Poison = sorted(t.poison, func(p poison.Poison) string { return p.Identity })
	for _, a := range sorted(t.applications, func(a *application) string { return a.name + a.clientID }) {
		doc.Applications = append(doc.Applications, model.Application{
			Name: a.name, ClientID: a.clientID, PrincipalID: a.principalID, Secrets: make([]model.Secret, len(a.secrets)), Certificates: writeCertificates(a.certificates),
		})
	}
	for _, v := range sorted(t.resources, func(v *resource) string { return v.id.String() }) {
		if v.kind == TypeScaleSet {
			doc.ScaleSets = append(doc.ScaleSets, t.model(v))
		} else {
			doc.VirtualMachines = append(doc.VirtualMachines, t.model(v))
		}
	}
	for _, n := range sorted(t.nodes, func(n *node) string { return n.name }) {
		doc.Nodes = append(doc.Nodes, n.model())
	}
	for _, a := range t.assignments {
		doc.RoleAssignments = append(doc.RoleAssignments, a.RoleAssignment)
	}
	for _, v := range sorted(t.vaults, func(v *vault) string { return v.name }) {
		doc.Vaults = append(doc.Vaults, v.model())
	}
	for _, a := range sorted(t.accounts, func(a *account) string { return a.name }) {
		doc.StorageAccounts = append(doc.StorageAccounts, a.model())
	}
	return doc
}

func sorted[K comparable, V any](m map[K]V, key func(V) string) []V {
	return slices.SortedFunc(maps.Values(m), func(a, b V) int { return cmp.Compare(key(a), key(b)) })
}
