package ruleset

import (
	"fmt"
	"reflect"
)

// Damage is one difference between the rules that should be there and those
// that are.
type Damage struct {
	Table string
	Chain string // "" for the table itself
	What  string
}

// Error says what is damaged.
func (d *Damage) Error() string {
	if d.Chain == "" {
		return fmt.Sprintf("table ip %s: %s", d.Table, d.What)
	}
	return fmt.Sprintf("table ip %s, chain %s: %s", d.Table, d.Chain, d.What)
}

// Compare returns the first thing in which found, nil for no table, differs
// from want; nil if it does in nothing.
func Compare(want Table, found *Table) *Damage {
	if found == nil {
		return &Damage{Table: want.Name, What: "missing"}
	}
	if found.Flags != want.Flags {
		return &Damage{Table: want.Name, What: fmt.Sprintf("has flags %#x, want %#x", found.Flags, want.Flags)}
	}
	at := make(map[string]Chain, len(found.Chains))
	for _, c := range found.Chains {
		at[c.Name] = c
	}
	for _, w := range want.Chains {
		f, ok := at[w.Name]
		if !ok {
			return &Damage{Table: want.Name, Chain: w.Name, What: "missing"}
		}
		if what := compareChain(w, f); what != "" {
			return &Damage{Table: want.Name, Chain: w.Name, What: what}
		}
	}
	if found.Uses != want.Uses {
		return &Damage{Table: want.Name, What: fmt.Sprintf("holds %d chains and other objects, want %d", found.Uses, want.Uses)}
	}
	return nil
}

func compareChain(want, found Chain) string {
	switch {
	case found.Kind != want.Kind:
		return fmt.Sprintf("has type %q, want %q", found.Kind, want.Kind)
	case found.Hook != want.Hook:
		return fmt.Sprintf("is at hook %d, want %d", found.Hook, want.Hook)
	case found.Priority != want.Priority:
		return fmt.Sprintf("has priority %d, want %d", found.Priority, want.Priority)
	case found.Policy != want.Policy:
		return fmt.Sprintf("has policy %d, want %d", found.Policy, want.Policy)
	case len(found.Rules) != len(want.Rules):
		return fmt.Sprintf("has %d rules, want %d", len(found.Rules), len(want.Rules))
	}
	for i := range want.Rules {
		if !reflect.DeepEqual(found.Rules[i], want.Rules[i]) {
			return fmt.Sprintf("rule %d is not %q", i+1, want.Rules[i].Comment)
		}
	}
	return ""
}
