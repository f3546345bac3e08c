package predecessor

import (
	"encoding/binary"
	"slices"
	"testing"
)

// entry is one of a table: with a target of a name and what stands behind it.
func entry(target, data string) []byte {
	out := make([]byte, entryLen+targetLen+errorNameLen+2)
	binary.NativeEndian.PutUint16(out[entryTargetAt:], entryLen)
	binary.NativeEndian.PutUint16(out[entryNextAt:], uint16(len(out)))
	copy(out[entryLen+targetNameAt:], target)
	copy(out[entryLen+targetLen:], data)
	return out
}

func TestEntriesHave(t *testing.T) {
	jump, chain, other, end := entry("", "aad-metadata"), entry("ERROR", "aad-metadata"), entry("ERROR", "aad-metadata-2"), entry("ERROR", "ERROR")
	with := func(e []byte, at int, value uint16) []byte {
		e = slices.Clone(e)
		binary.NativeEndian.PutUint16(e[at:], value)
		return e
	}
	for name, test := range map[string]struct {
		entries []byte
		has, ok bool
	}{
		"nothing":                          {nil, false, true},
		"the chain":                        {slices.Concat(jump, other, chain, end), true, true},
		"another chain":                    {slices.Concat(jump, other, end), false, true},
		"an entry cut off":                 {chain[:50], false, false},
		"a target before the entry's end":  {with(chain, entryTargetAt, 3), false, false},
		"a target beyond the entry":        {with(chain, entryTargetAt, 60000), false, false},
		"an entry beyond the table":        {with(chain, entryNextAt, 60000), false, false},
		"an entry that leads to itself":    {with(chain, entryNextAt, 0), false, false},
		"a name that fills its field":      {entry("ERROR", "aad-metadata-of-thirty-bytes-x"), false, true},
		"a target that fills its field":    {entry("12345678901234567890123456789", ""), false, true},
		"a target without room for a name": {with(chain, entryNextAt, entryLen+targetLen)[:entryLen+targetLen], false, true},
	} {
		t.Run(name, func(t *testing.T) {
			has, err := entriesHave(test.entries, chainName)
			if has != test.has || (err == nil) != test.ok {
				t.Errorf("got %t, %v, want %t", has, err, test.has)
			}
		})
	}
}

func FuzzEntriesHave(f *testing.F) {
	f.Add(entry("ERROR", "aad-metadata"))
	f.Add(slices.Concat(entry("", ""), entry("ERROR", "ERROR")))
	f.Fuzz(func(t *testing.T, entries []byte) {
		if has, err := entriesHave(entries, chainName); has && err != nil {
			t.Errorf("has it, and %v", err)
		}
	})
}
