package redirect

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

// compare returns the first thing in which found, nil for no table, differs
// from want; nil if it does in nothing.
func compare(want table, found *table) *Damage {
	if found == nil {
		return &Damage{Table: want.name, What: "missing"}
	}
	if found.flags != want.flags {
		return &Damage{Table: want.name, What: fmt.Sprintf("has flags %#x, want %#x", found.flags, want.flags)}
	}
	at := make(map[string]chain, len(found.chains))
	for _, c := range found.chains {
		at[c.name] = c
	}
	for _, w := range want.chains {
		f, ok := at[w.name]
		if !ok {
			return &Damage{Table: want.name, Chain: w.name, What: "missing"}
		}
		if what := compareChain(w, f); what != "" {
			return &Damage{Table: want.name, Chain: w.name, What: what}
		}
	}
	if found.uses != want.uses {
		return &Damage{Table: want.name, What: fmt.Sprintf("holds %d chains and other objects, want %d", found.uses, want.uses)}
	}
	return nil
}

func compareChain(want, found chain) string {
	switch {
	case found.kind != want.kind:
		return fmt.Sprintf("has type %q, want %q", found.kind, want.kind)
	case found.hook != want.hook:
		return fmt.Sprintf("is at hook %d, want %d", found.hook, want.hook)
	case found.priority != want.priority:
		return fmt.Sprintf("has priority %d, want %d", found.priority, want.priority)
	case found.policy != want.policy:
		return fmt.Sprintf("has policy %d, want %d", found.policy, want.policy)
	case len(found.rules) != len(want.rules):
		return fmt.Sprintf("has %d rules, want %d", len(found.rules), len(want.rules))
	}
	for i := range want.rules {
		if !reflect.DeepEqual(found.rules[i], want.rules[i]) {
			return fmt.Sprintf("rule %d is not %q", i+1, want.rules[i].comment)
		}
	}
	return ""
}
