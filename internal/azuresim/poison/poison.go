// Package poison is which identities ARM refuses, how, and in which words.
//
// One such identity fails the whole request that attaches it. What it is called
// in the message, if at all, differs between the services behind ARM; clients
// must understand all of it. The package is pure: data, a choice and text. It
// must not know a scale set or an answer's status.
package poison

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// When an identity is refused.
const (
	InRequest   = "request"   // at once
	InOperation = "operation" // by the operation that the request started
)

// How an identity is refused.
const (
	FailedIdentityOperation   = "FailedIdentityOperation"   // as one that is not there
	LinkedAuthorizationFailed = "LinkedAuthorizationFailed" // as one that the principal may not assign
	Throttled                 = "Throttled"                 // by a 429 from behind ARM, dressed as FailedIdentityOperation
)

// How the message names the identities.
const (
	Single  = "single" // 'id,id'
	Double  = "double" // "id", "id"
	Bare    = "bare"   // id, id
	Unnamed = "none"
)

// In which case the message names them.
const (
	AsARM = "arm" // as they were sent, but for one segment in lower case
	Lower = "lower"
	Upper = "upper"
	Mixed = "mixed"
)

// Poison makes ARM refuse an identity. Empty fields mean the first of what is
// listed for them.
type Poison struct {
	Identity string `json:"identity"`         // ARM ID; no such identity needs to be there
	In       string `json:"in,omitempty"`     // request, operation
	Error    string `json:"error,omitempty"`  // FailedIdentityOperation, LinkedAuthorizationFailed, Throttled
	Naming   string `json:"naming,omitempty"` // single, double, bare, none
	Casing   string `json:"casing,omitempty"` // arm, lower, upper, mixed
	// OneByOne: the message names no second identity beside this one.
	OneByOne bool `json:"oneByOne,omitempty"`
	// Times is how often it is refused; 0: until it is removed.
	Times  int `json:"times,omitempty"`
	Played int `json:"played,omitempty"` // so far; set by the simulator
}

// WithDefaults fills empty fields, or says which is wrong.
func (p Poison) WithDefaults() (Poison, error) {
	if _, err := armid.ParseUserAssigned(p.Identity); err != nil {
		return p, fmt.Errorf("reading a poison: %w", err)
	}
	for _, field := range []struct {
		name  string
		value *string
		known []string
	}{
		{"in", &p.In, []string{InRequest, InOperation}},
		{"error", &p.Error, []string{FailedIdentityOperation, LinkedAuthorizationFailed, Throttled}},
		{"naming", &p.Naming, []string{Single, Double, Bare, Unnamed}},
		{"casing", &p.Casing, []string{AsARM, Lower, Upper, Mixed}},
	} {
		if *field.value == "" {
			*field.value = field.known[0]
		}
		if !slices.Contains(field.known, *field.value) {
			return p, fmt.Errorf("reading a poison: %s is %q: want one of %s", field.name, *field.value, strings.Join(field.known, ", "))
		}
	}
	if p.Times < 0 {
		return p, fmt.Errorf("reading a poison: times is %d: it must not be negative", p.Times)
	}
	return p, nil
}

// IsActive reports whether ARM still refuses the identity.
func (p Poison) IsActive() bool { return p.Identity != "" && (p.Times == 0 || p.Played < p.Times) }

// Refusal is one answer of ARM's about one or more identities.
type Refusal struct {
	Kind   string // the poison's Error
	naming string
	casing string
	// IDs are the refused ones, as ARM spells them.
	IDs []string
}

// Choose returns the refusal that a request meets which attaches the identities
// added (to their spelling), and the poisons that make it, or nil. Only what is
// said in one way can stand in one message: others wait for their turn.
func Choose(poisons map[armid.ID]Poison, added map[armid.ID]string, in string) (*Refusal, []armid.ID) {
	var first *Poison
	var refusal Refusal
	var chosen []armid.ID
	for _, id := range slices.SortedFunc(maps.Keys(added), armid.ID.Compare) {
		p, ok := poisons[id]
		if !ok || p.In != in || !p.IsActive() {
			continue
		}
		if first == nil {
			first, refusal = &p, Refusal{Kind: p.Error, naming: p.Naming, casing: p.Casing}
		} else if !first.goesWith(p) {
			continue
		}
		refusal.IDs = append(refusal.IDs, added[id])
		chosen = append(chosen, id)
	}
	if first == nil {
		return nil, nil
	}
	return &refusal, chosen
}

// goesWith reports whether one message can be about both.
func (p Poison) goesWith(other Poison) bool {
	return !p.OneByOne && !other.OneByOne && p.Error == other.Error && p.Naming == other.Naming && p.Casing == other.Casing
}

// Names is how the message calls the identities, quotes and all, or "" if it
// does not.
func (r Refusal) Names() string {
	ids := make([]string, len(r.IDs))
	for i, id := range r.IDs {
		ids[i] = cased(id, r.casing)
	}
	switch r.naming {
	case Single:
		return "'" + strings.Join(ids, ",") + "'"
	case Double:
		return `"` + strings.Join(ids, `", "`) + `"`
	case Bare:
		return strings.Join(ids, ", ")
	}
	return ""
}

func cased(id, casing string) string {
	switch casing {
	case Lower:
		return strings.ToLower(id)
	case Upper:
		return strings.ToUpper(id)
	case Mixed:
		return mixed(id)
	}
	return id
}

// mixed alternates the case from letter to letter.
func mixed(id string) string {
	upper := false
	return strings.Map(func(r rune) rune {
		if upper = !upper; upper {
			return unicode.ToUpper(r)
		}
		return unicode.ToLower(r)
	}, id)
}
