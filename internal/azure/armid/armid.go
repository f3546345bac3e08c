// Package armid parses and compares Azure Resource Manager (ARM) resource IDs.
//
// It is pure and a leaf, so that every stage can name an Azure resource by one
// comparable value. It must not learn what any resource is for: which IDs make
// a pod's identity or a node's resource is for the packages above.
package armid

import (
	"errors"
	"fmt"
	"strings"
)

// UserAssignedIdentityType is the resource type of a user-assigned managed
// identity, folded to lower case as [ID.Type] returns it.
const UserAssignedIdentityType = "microsoft.managedidentity/userassignedidentities"

// ID is the ARM ID of a resource inside a resource group.
//
// ARM compares IDs without case and answers with whatever case it likes, so an
// ID is folded to lower case when it is parsed: two IDs are the same resource
// exactly if they are ==, and an ID can key a map. The zero ID names nothing.
type ID struct {
	folded string
}

// ErrInvalid is wrapped by every error of this package.
var ErrInvalid = errors.New("invalid ARM resource ID")

// Parse reads an ARM ID of the form
//
//	/subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME[/TYPE/NAME…]
//
// in any case and with or without one trailing slash. Nothing may stand before
// or after it. An unreplaced placeholder of a tutorial (`<name>`, `{name}`,
// `...`) is refused with words that say so.
func Parse(s string) (ID, error) {
	if err := check(s); err != nil {
		return ID{}, fmt.Errorf("%w: %q %w", ErrInvalid, s, err)
	}
	return ID{folded: strings.ToLower(strings.TrimSuffix(s, "/"))}, nil
}

// ParseUserAssigned is [Parse] for an ID that must name a user-assigned managed
// identity.
func ParseUserAssigned(s string) (ID, error) {
	id, err := Parse(s)
	if err != nil {
		return ID{}, err
	}
	if id.Type() != UserAssignedIdentityType {
		return ID{}, fmt.Errorf("%w: %q is not a user-assigned identity: want "+
			"/subscriptions/…/resourceGroups/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME", ErrInvalid, s)
	}
	return id, nil
}

// check makes no copy of what is right: the controller reads IDs by the thousand.
func check(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	if p := Placeholder(s); p != "" {
		return fmt.Errorf("still holds the placeholder %q: put the real value in its place", p)
	}
	if !strings.HasPrefix(s, "/") {
		return errors.New("must begin with /subscriptions/")
	}
	n, shaped := 0, true
	for segment := range strings.SplitSeq(strings.TrimSuffix(s[1:], "/"), "/") {
		if !validSegment(segment) {
			return fmt.Errorf("has the segment %q: segments hold letters, digits and . _ - ( )", segment)
		}
		if want := fixed(n); want != "" && !strings.EqualFold(segment, want) {
			shaped = false
		}
		n++
	}
	if !shaped || n < 8 || n%2 != 0 {
		return errors.New("must read /subscriptions/…/resourceGroups/…/providers/NAMESPACE/TYPE/NAME")
	}
	return nil
}

// fixed is the word that must stand at a place, or "".
func fixed(place int) string {
	switch place {
	case 0:
		return "subscriptions"
	case 2:
		return "resourceGroups"
	case 4:
		return "providers"
	}
	return ""
}

// validSegment holds the characters that ARM allows in a subscription,
// resource-group, provider, type or resource name.
func validSegment(s string) bool {
	if s == "" || s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case strings.ContainsRune("._-()", r):
		default:
			return false
		}
	}
	return true
}

// Placeholder returns the unreplaced placeholder that s holds, as tutorials
// print them (`<name>`, `{name}`, `/...`), or "".
func Placeholder(s string) string {
	for _, pair := range []string{"<>", "{}"} {
		if from := strings.IndexByte(s, pair[0]); from >= 0 {
			if to := strings.IndexByte(s[from:], pair[1]); to > 0 {
				return s[from : from+to+1]
			}
		}
	}
	if strings.Contains(s, "/...") {
		return "..."
	}
	return ""
}

// Equal reports whether a and b, as users write them, name the same resource.
// Strings that are not ARM IDs are equal to nothing.
func Equal(a, b string) bool {
	x, errX := Parse(a)
	y, errY := Parse(b)
	return errX == nil && errY == nil && x == y
}

// IsZero reports whether the ID names nothing.
func (id ID) IsZero() bool { return id.folded == "" }

// String returns the ID folded to lower case, or "" for the zero ID.
func (id ID) String() string { return id.folded }

// Subscription returns the subscription's ID.
func (id ID) Subscription() string { return id.segment(1) }

// ResourceGroup returns the name of the resource group.
func (id ID) ResourceGroup() string { return id.segment(3) }

// Type returns the full resource type, such as
// "microsoft.compute/virtualmachinescalesets/virtualmachines".
func (id ID) Type() string {
	if id.IsZero() {
		return ""
	}
	resource := id.folded[1:]
	for range 5 { // /subscriptions/S/resourceGroups/G/providers
		_, resource, _ = strings.Cut(resource, "/")
	}
	if strings.Count(resource, "/") == 2 { // of one part only
		return resource[:strings.LastIndexByte(resource, '/')]
	}
	segments := strings.Split(resource, "/")
	parts := segments[:1]
	for i := 1; i < len(segments); i += 2 {
		parts = append(parts, segments[i])
	}
	return strings.Join(parts, "/")
}

// Name returns the last name in the ID: the resource's own.
func (id ID) Name() string {
	if id.IsZero() {
		return ""
	}
	segments := id.segments()
	return segments[len(segments)-1]
}

// Parent returns the resource that this one is a part of, such as the scale set
// of an instance, and false for a top-level resource.
func (id ID) Parent() (ID, bool) {
	segments := id.segments()
	if len(segments) < 10 {
		return ID{}, false
	}
	return ID{folded: "/" + strings.Join(segments[:len(segments)-2], "/")}, true
}

// MarshalText returns the folded ID.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.folded), nil }

// UnmarshalText parses text; empty text is the zero ID.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

func (id ID) segments() []string { return strings.Split(strings.TrimPrefix(id.folded, "/"), "/") }

func (id ID) segment(i int) string {
	if id.IsZero() {
		return ""
	}
	return id.segments()[i]
}

// Compare orders IDs by their folded text, as cmp.Compare does.
func (id ID) Compare(other ID) int { return strings.Compare(id.folded, other.folded) }
