package entra

import (
	"encoding/asn1"
	"fmt"
)

const (
	// maxIterations bounds the work that a PFX asks for to be opened: real ones
	// ask for some thousands, the most careful for a million.
	maxIterations = 2_000_000
	// maxDepth bounds how deep a PFX is looked into.
	maxDepth = 24
)

// checkIterations refuses a PFX that would take minutes to open. Everywhere in
// it, the number of iterations follows on a salt. What lies encrypted cannot be
// seen before it is opened.
func checkIterations(der []byte) error {
	return walk(der, maxDepth)
}

func walk(der []byte, depth int) error {
	afterSalt := false
	for depth > 0 && len(der) > 0 {
		var value asn1.RawValue
		rest, err := asn1.Unmarshal(der, &value)
		if err != nil {
			return nil //nolint:nilerr // bytes that are no structure hold no numbers
		}
		if afterSalt && is(value, asn1.TagInteger) {
			if err := checkCount(value.FullBytes); err != nil {
				return err
			}
		}
		der, afterSalt = rest, is(value, asn1.TagOctetString)
		if !value.IsCompound && !afterSalt {
			continue
		}
		if err := walk(value.Bytes, depth-1); err != nil {
			return err
		}
	}
	return nil
}

func is(value asn1.RawValue, tag int) bool {
	return value.Class == asn1.ClassUniversal && value.Tag == tag
}

func checkCount(der []byte) error {
	var count int64
	if _, err := asn1.Unmarshal(der, &count); err != nil || count > maxIterations {
		return fmt.Errorf("the PFX asks for more than %d iterations to be opened: export it with fewer", maxIterations)
	}
	return nil
}
