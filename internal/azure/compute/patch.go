package compute

import (
	"maps"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// IdentityType is ARM's identity.type, in ARM's spelling.
type IdentityType string

// The types of a resource's identity block.
const (
	TypeNone           IdentityType = "None"
	TypeSystemAssigned IdentityType = "SystemAssigned"
	TypeUserAssigned   IdentityType = "UserAssigned"
	TypeBoth           IdentityType = "SystemAssigned, UserAssigned"
)

// ParseIdentityType reads a type in any case; an absent one is [TypeNone]. A
// type that is none of the four is returned as it is and false: it must not be
// overwritten by somebody who does not know what it means.
func ParseIdentityType(s string) (IdentityType, bool) {
	if s == "" {
		return TypeNone, true
	}
	for _, known := range []IdentityType{TypeNone, TypeSystemAssigned, TypeUserAssigned, TypeBoth} {
		if strings.EqualFold(strings.ReplaceAll(s, " ", ""), strings.ReplaceAll(string(known), " ", "")) {
			return known, true
		}
	}
	return IdentityType(s), false
}

func (t IdentityType) systemAssigned() bool { return t == TypeSystemAssigned || t == TypeBoth }

// MaxIdentitiesPerRequest is the number of identities that ARM takes in one
// request; one more is refused with "exceed limit '150' in one request".
const MaxIdentitiesPerRequest = 150

// Identities are the managed identities of one resource, as ARM showed them.
type Identities struct {
	Type IdentityType
	// Present maps each user-assigned identity to its client ID, which ARM
	// leaves empty for one that has been deleted.
	Present map[armid.ID]string
	// Unreadable holds what ARM lists and no ARM ID parser takes. They are
	// somebody else's, and are kept.
	Unreadable []string
	// ETag is of the resource, to be sent as If-Match; as ARM gave it.
	ETag string
	// Updating says that an operation on the resource runs. What it attaches is
	// already shown, and not yet there.
	Updating bool
}

// Has reports whether the identity is shown on the resource.
func (i Identities) Has(id armid.ID) bool {
	_, ok := i.Present[id]
	return ok
}

// Patch is one change of a resource's user-assigned identities. It names no
// identity that stays as it is.
type Patch struct {
	// Add and Remove are sorted and share no identity.
	Add, Remove []armid.ID
	// Type is the type of the identity block after the patch.
	Type IdentityType
}

// Body returns the map of a PATCH's identity.userAssignedIdentities: true to
// add, false to remove. It is nil where no user-assigned identity stays: ARM
// wants the type alone then.
func (p *Patch) Body() map[armid.ID]bool {
	if p.Type == TypeNone || p.Type == TypeSystemAssigned {
		return nil
	}
	body := make(map[armid.ID]bool, len(p.Add)+len(p.Remove))
	for _, id := range p.Add {
		body[id] = true
	}
	for _, id := range p.Remove {
		body[id] = false
	}
	return body
}

// Apply returns what ARM shows after the patch. The receiver is not changed.
func (i Identities) Apply(p *Patch) Identities {
	out := i
	out.Type = p.Type
	out.Present = make(map[armid.ID]string, len(i.Present)+len(p.Add))
	maps.Copy(out.Present, i.Present)
	for _, id := range p.Add {
		out.Present[id] = ""
	}
	for _, id := range p.Remove {
		delete(out.Present, id)
	}
	return out
}

// IdentityPatch returns the next request that brings the resource closer to
// what is wanted, or nil if there is nothing to do:
//
//	wanted  present  owned  →
//	yes     any    stays
//	yes     no       any    added
//	no      yes      removed
//	no      yes      no     stays: it is somebody else's
//	no      any    nothing
//
// A request names limit identities at most, what is added first; the rest is in
// the patch of the state that the request leaves. A limit below one means
// [MaxIdentitiesPerRequest]. The order of the lists does not matter, and the
// system-assigned identity is always kept.
func IdentityPatch(current Identities, wanted, owned []armid.ID, limit int) *Patch {
	if limit < 1 {
		limit = MaxIdentitiesPerRequest
	}
	p := &Patch{}
	for _, id := range sorted(wanted) {
		if !current.Has(id) && len(p.Add) < limit {
			p.Add = append(p.Add, id)
		}
	}
	for _, id := range sorted(owned) {
		if current.Has(id) && !slices.Contains(wanted, id) && len(p.Add)+len(p.Remove) < limit {
			p.Remove = append(p.Remove, id)
		}
	}
	if len(p.Add)+len(p.Remove) == 0 {
		return nil
	}
	p.Type = typeAfter(current, p)
	return p
}

func typeAfter(current Identities, p *Patch) IdentityType {
	left := len(current.Present) + len(current.Unreadable) + len(p.Add) - len(p.Remove)
	switch system := current.Type.systemAssigned(); {
	case system && left > 0:
		return TypeBoth
	case system:
		return TypeSystemAssigned
	case left > 0:
		return TypeUserAssigned
	}
	return TypeNone
}

// sorted returns the distinct IDs in order, and leaves the list as it is.
func sorted(ids []armid.ID) []armid.ID {
	out := slices.Clone(ids)
	slices.SortFunc(out, armid.ID.Compare)
	return slices.Compact(out)
}
