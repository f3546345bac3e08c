// Package identity holds the value types of a principal that pods may use: read
// once from an AzureIdentity at the edge, then passed by value.
//
// It is pure. It must not decide who may use an identity (that is binding) or
// how a token for it is got (that is the agent's tokensource).
package identity

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Kind says what sort of principal an [Identity] is.
type Kind int

// The kinds of identities, by the numbers of AzureIdentity's spec.type.
const (
	ManagedIdentity             Kind = Kind(v1.UserAssignedManagedIdentity)
	ServicePrincipal            Kind = Kind(v1.ServicePrincipal)
	ServicePrincipalCertificate Kind = Kind(v1.ServicePrincipalCertificate)
)

// String names the kind as people speak of it.
func (k Kind) String() string {
	switch k {
	case ManagedIdentity:
		return "user-assigned managed identity"
	case ServicePrincipal:
		return "service principal with a secret"
	case ServicePrincipalCertificate:
		return "service principal with a certificate"
	}
	return fmt.Sprintf("unknown type %d", int(k))
}

// ClientID is the client (application) ID of a principal. GUIDs compare without
// case, so it is folded to lower case when it is made: two client IDs are the
// same exactly if they are ==. The zero ClientID names nothing.
type ClientID struct {
	folded string
}

// ParseClientID reads a client ID in any case. Surrounding white space is an
// error, not trimmed: what is in the object is what was meant.
func ParseClientID(s string) (ClientID, error) {
	switch {
	case s == "":
		return ClientID{}, fmt.Errorf("clientID is empty: give the identity's client ID, or a request would be answered with the node's default identity")
	case armid.Placeholder(s) != "":
		return ClientID{}, fmt.Errorf("clientID still holds the placeholder %q: put the real value in its place", armid.Placeholder(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return ClientID{}, fmt.Errorf("clientID %q holds white space or characters outside ASCII: give the GUID alone", s)
	}
	return ClientID{folded: strings.ToLower(s)}, nil
}

// Matches reports whether s, as a caller spells it, is this client ID.
func (c ClientID) Matches(s string) bool {
	return c.folded != "" && strings.EqualFold(c.folded, s)
}

// String returns the client ID in lower case, or "" for the zero ClientID.
func (c ClientID) String() string { return c.folded }

// Key names an object of a namespace. It is comparable and keys maps.
type Key struct {
	Namespace, Name string
}

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace, then name, as cmp.Compare does.
func (k Key) Compare(other Key) int {
	if c := strings.Compare(k.Namespace, other.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, other.Name)
}

// MaxAuxiliaryTenants is how many tenants Entra takes beside the first.
const MaxAuxiliaryTenants = 3

// Identity is one principal that pods may be bound to. Identities that are ==
// have the same tokens.
type Identity struct {
	// Key is the namespace and name of the AzureIdentity.
	Key
	// Kind says which of the fields below are set.
	Kind Kind
	// ClientID is set for every kind. Only a managed identity of before there was
	// validation may lack it, and then has its ResourceID.
	ClientID ClientID
	// ResourceID is the user-assigned managed identity's; zero for service
	// principals, and for federated identities that give none.
	ResourceID armid.ID
	// TenantID is set for service principals.
	TenantID string
	// AuxiliaryTenants are further tenants that a service principal with a secret
	// gets tokens of, from the front; the rest is empty. An array keeps
	// identities comparable.
	AuxiliaryTenants [MaxAuxiliaryTenants]string
	// Authority is where a service principal proves itself, as the object has
	// it: a URL, or empty for the install's own. It is not checked here.
	Authority string
	// Credential is the Secret of a service principal.
	Credential Key
	// Namespaced restricts the identity to pods of its own namespace.
	Namespaced bool
	// Federated says that tokens come from Entra in exchange for a token of the
	// pod's ServiceAccount, and that nothing is attached to a node.
	Federated bool
}

// Attached reports whether the identity must be on the node's virtual machine or
// scale set before its tokens can be had there.
func (i Identity) Attached() bool { return i.Kind == ManagedIdentity && !i.Federated }

// Tenants returns the tenants that a token is due of: the identity's own first,
// then the auxiliary ones.
func (i Identity) Tenants() []string {
	out := []string{i.TenantID}
	for _, tenant := range i.AuxiliaryTenants {
		if tenant != "" {
			out = append(out, tenant)
		}
	}
	return out
}

// In returns the identity as it is in one tenant, without auxiliary ones.
func (i Identity) In(tenant string) Identity {
	i.TenantID, i.AuxiliaryTenants = tenant, [MaxAuxiliaryTenants]string{}
	return i
}

// InvalidError says why an AzureIdentity cannot be used as it is written.
type InvalidError struct {
	Key Key
	Err error
}

// Error names the object and what is wrong with it.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("AzureIdentity %s cannot be used: %v", e.Key, e.Err)
}

// Unwrap returns what is wrong.
func (e *InvalidError) Unwrap() error { return e.Err }

// FromObject reads an AzureIdentity, in old spellings too. The API server refuses
// new objects that are invalid; objects that an older API let in are met here.
// Every error is an [*InvalidError].
func FromObject(obj *v1.AzureIdentity) (Identity, error) {
	key := Key{Namespace: obj.Namespace, Name: obj.Name}
	out, err := read(obj)
	if err != nil {
		return Identity{}, &InvalidError{Key: key, Err: err}
	}
	out.Key = key
	return out, nil
}

func read(obj *v1.AzureIdentity) (Identity, error) {
	spec, err := obj.Spec.Normalized()
	if err != nil {
		return Identity{}, err
	}
	out := Identity{
		Kind:       Kind(spec.Type),
		TenantID:   spec.TenantID,
		Namespaced: obj.Namespaced(),
		Federated:  spec.Federation != nil,
	}
	if !out.Attached() || spec.ClientID != "" || spec.ResourceID == "" {
		if out.ClientID, err = ParseClientID(spec.ClientID); err != nil {
			return Identity{}, err
		}
	}
	switch out.Kind {
	case ManagedIdentity:
		return managed(out, spec)
	case ServicePrincipal, ServicePrincipalCertificate:
		return servicePrincipal(out, spec)
	}
	return Identity{}, fmt.Errorf("type %d is unknown: want 0 (managed identity), 1 (service principal, secret) or 2 (service principal, certificate)", spec.Type)
}

func managed(out Identity, spec v1.AzureIdentitySpec) (Identity, error) {
	if out.Federated && spec.ResourceID == "" {
		return out, nil
	}
	id, err := armid.ParseUserAssigned(spec.ResourceID)
	if err != nil {
		return Identity{}, fmt.Errorf("reading resourceID: %w", err)
	}
	out.ResourceID = id
	return out, nil
}

func servicePrincipal(out Identity, spec v1.AzureIdentitySpec) (Identity, error) {
	switch {
	case out.Federated:
		return Identity{}, fmt.Errorf("federation goes with type 0 only")
	case spec.TenantID == "":
		return Identity{}, fmt.Errorf("tenantID is empty: a service principal needs its tenant")
	case spec.ClientPassword == nil || spec.ClientPassword.Name == "" || spec.ClientPassword.Namespace == "":
		return Identity{}, fmt.Errorf("clientPassword must name a Secret by name and namespace")
	}
	out.Credential = Key{Namespace: spec.ClientPassword.Namespace, Name: spec.ClientPassword.Name}
	out.Authority = spec.ADEndpoint
	return auxiliary(out, spec.AuxiliaryTenantIDs)
}

// auxiliary adds the tenants that only a service principal with a secret can
// have; for others they never had an effect.
func auxiliary(out Identity, tenants []string) (Identity, error) {
	if out.Kind != ServicePrincipal {
		return out, nil
	}
	if len(tenants) > MaxAuxiliaryTenants {
		return Identity{}, fmt.Errorf("auxiliaryTenantIDs holds %d tenants: want at most %d", len(tenants), MaxAuxiliaryTenants)
	}
	if slices.Contains(tenants, "") {
		return Identity{}, fmt.Errorf("auxiliaryTenantIDs holds an empty tenant: remove it")
	}
	copy(out.AuxiliaryTenants[:], tenants)
	return out, nil
}
