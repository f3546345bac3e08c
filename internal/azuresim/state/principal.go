package state

import (
	"net/netip"
	"slices"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// Principal is a service principal that may hold a token.
type Principal struct {
	ObjectID string
	ClientID string
	// ResourceID is the ARM ID of a managed identity, or of the resource whose
	// system-assigned identity this is; empty for an application.
	ResourceID string
	// ByCertificate says that an application proved itself with one.
	ByCertificate bool
}

// NodeInfo is a node as its IMDS describes it.
type NodeInfo struct {
	Name     string
	Resource string // ARM ID of the scale set that it is an instance of, or of its own virtual machine
	Kind     string // [TypeScaleSet] or [TypeVirtualMachine]
	Location string
	Instance int    // in the scale set
	PartOf   string // the Flexible scale set of a virtual machine
	VMID     string
}

// Selector says which identity IMDS is asked for; at most one field is set.
type Selector struct {
	ClientID, ObjectID, ResourceID string
}

// principals lists every service principal of the tenant.
func (t *tables) principals() []Principal {
	var all []Principal
	for _, i := range t.identities {
		all = append(all, i.principal())
	}
	for _, a := range t.applications {
		all = append(all, Principal{ObjectID: a.principalID, ClientID: a.clientID})
	}
	for _, v := range t.resources {
		for _, block := range []identityBlock{v.shown, v.usable} {
			if block.system != nil {
				all = append(all, systemPrincipal(v, block.system))
			}
		}
	}
	return all
}

func (i *Identity) principal() Principal {
	return Principal{ObjectID: i.PrincipalID, ClientID: i.ClientID, ResourceID: i.Spelling}
}

func systemPrincipal(v *resource, system *model.SystemAssigned) Principal {
	return Principal{ObjectID: system.PrincipalID, ClientID: system.ClientID, ResourceID: armSpelling(v.spelling)}
}

// NodeAt returns the node from which addr asks: the one with the longest prefix
// that holds it.
func (s *State) NodeAt(addr netip.Addr) (NodeInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *node
	bits := -1
	for _, n := range s.t.nodes {
		for _, p := range n.prefixes {
			if p.Contains(addr.Unmap()) && p.Bits() > bits {
				best, bits = n, p.Bits()
			}
		}
	}
	if best == nil {
		return NodeInfo{}, false
	}
	return best.info(), true
}

func (n *node) info() NodeInfo {
	return NodeInfo{
		Name: n.name, Resource: n.resource.spelling, Kind: n.resource.kind, Location: n.resource.location, Instance: n.instance, VMID: n.vmID, PartOf: n.resource.partOf,
	}
}

// IdentityAt returns the identity for which IMDS on the named node gives a
// token. Asked for none it is the system-assigned one, else the only
// user-assigned one. The error wraps [ErrNotFound] (no such node),
// [ErrIdentityNotFound] or [ErrSeveral].
func (s *State) IdentityAt(nodeName string, want Selector) (Principal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	n, ok := s.t.nodes[nodeName]
	if !ok {
		return Principal{}, ErrNotFound
	}
	attached := s.t.usableOn(n.resource)
	if want == (Selector{}) {
		return defaultIdentity(attached, n.resource.usable.system != nil)
	}
	i := slices.IndexFunc(attached, want.matches)
	if i < 0 {
		return Principal{}, ErrIdentityNotFound
	}
	return attached[i], nil
}

// usableOn lists the identities that IMDS knows on v, the system-assigned one
// first.
func (t *tables) usableOn(v *resource) []Principal {
	var attached []Principal
	if v.usable.system != nil {
		attached = append(attached, systemPrincipal(v, v.usable.system))
	}
	for id, on := range v.usable.user {
		if t.isCurrent(id, on) {
			attached = append(attached, t.identities[id].principal())
		}
	}
	return attached
}

func defaultIdentity(attached []Principal, system bool) (Principal, error) {
	switch {
	case len(attached) == 0:
		return Principal{}, ErrIdentityNotFound
	case system, len(attached) == 1:
		return attached[0], nil
	}
	return Principal{}, ErrSeveral
}

// matches compares as IMDS does, without case.
func (want Selector) matches(p Principal) bool {
	switch {
	case want.ClientID != "":
		return equalGUID(want.ClientID, p.ClientID)
	case want.ObjectID != "":
		return equalGUID(want.ObjectID, p.ObjectID)
	}
	return armid.Equal(want.ResourceID, p.ResourceID)
}

func equalGUID(asked, have string) bool {
	parsed, err := guid("", asked)
	return err == nil && parsed == have
}

// Application returns the service principal of an application of the tenant.
func (s *State) Application(clientID string) (Principal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.t.application(clientID)
	if !ok {
		return Principal{}, false
	}
	return Principal{ObjectID: a.principalID, ClientID: a.clientID}, true
}

// HasSecret reports whether secret is one of the application's.
func (s *State) HasSecret(clientID string, secret model.Secret) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.t.application(clientID)
	return ok && slices.Contains(a.secrets, secret)
}

func (t *tables) application(clientID string) (*application, bool) {
	parsed, err := guid("clientID", clientID)
	if err != nil {
		return nil, false
	}
	a, ok := t.applications[parsed]
	return a, ok
}
