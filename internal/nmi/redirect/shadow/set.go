package shadow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// set is a set or map of a table.
type set struct {
	elements []nftables.SetElement
	// intervals: an element goes up to the next one.
	intervals bool
}

// readSet reads a set by its name.
func readSet(conn *nftables.Conn, table *nftables.Table, name string) (set, error) {
	header, err := conn.GetSetByName(table, name)
	if err != nil {
		return set{}, fmt.Errorf("reading set %s of table %s: %w", name, table.Name, err)
	}
	elements, err := conn.GetSetElements(header)
	if err != nil {
		return set{}, fmt.Errorf("reading the elements of set %s of table %s: %w", name, table.Name, err)
	}
	return set{elements: elements, intervals: header.Interval && !header.Concatenation}, nil
}

// keyLen is how many bytes the keys have. A set without elements has none.
func (s set) keyLen() int {
	longest := 0
	for _, e := range s.elements {
		longest = max(longest, len(e.Key))
	}
	return longest
}

// find returns the element that holds a key. The key has [set.keyLen] bytes or more:
// zeros that fill a register, and what is in others.
func (s set) find(key []byte) (found nftables.SetElement, ok bool) {
	for _, e := range s.elements {
		switch order := bytes.Compare(e.Key, key[:len(e.Key)]); {
		case s.intervals:
			if order <= 0 && (!ok || later(e, found)) {
				found, ok = e, true
			}
		case order == 0, len(e.KeyEnd) == len(e.Key) && within(key, e.Key, e.KeyEnd):
			return e, true
		}
	}
	return found, ok && !found.IntervalEnd
}

// later orders the bounds of intervals. Where one ends another may begin.
func later(a, b nftables.SetElement) bool {
	order := bytes.Compare(a.Key, b.Key)
	return order > 0 || order == 0 && b.IntervalEnd
}

// registerLen is how many bytes a register has, and so each field of a key that has
// several.
const registerLen = 4

// within says whether each field of a key is within its own bounds.
func within(key, from, to []byte) bool {
	for i := 0; i < len(from); i += registerLen {
		end := min(i+registerLen, len(from))
		if bytes.Compare(key[i:end], from[i:end]) < 0 || bytes.Compare(key[i:end], to[i:end]) > 0 {
			return false
		}
	}
	return true
}

// chains are those that the set leads to, if it is a map of verdicts.
func (s set) chains(verdicts bool) []string {
	if !verdicts {
		return nil
	}
	var out []string
	for _, e := range s.elements {
		if v, err := verdict(e.Val); err == nil && v.Chain != "" {
			out = append(out, v.Chain)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// verdict reads the value of an element of a map of verdicts.
func verdict(value []byte) (*expr.Verdict, error) {
	attributes, err := netlink.NewAttributeDecoder(value)
	if err != nil {
		return nil, fmt.Errorf("reading a verdict: %w", err)
	}
	attributes.ByteOrder = binary.BigEndian
	var out expr.Verdict
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_VERDICT_CODE:
			out.Kind = expr.VerdictKind(int32(attributes.Uint32())) //nolint:gosec // that is how the kernel writes it
		case unix.NFTA_VERDICT_CHAIN:
			out.Chain = strings.TrimRight(attributes.String(), "\x00")
		}
	}
	if err := attributes.Err(); err != nil {
		return nil, fmt.Errorf("reading a verdict: %w", err)
	}
	return &out, nil
}
