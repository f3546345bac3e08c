// Package timing is how a document writes spans of time.
//
// It is pure and a leaf: values and their text. It must not read a clock.
package timing

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Duration is a [time.Duration] that reads and writes as "1.5s".
type Duration time.Duration

// MarshalText writes the duration as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads a duration as Go writes it.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("parsing duration: %w", err)
	}
	*d = Duration(parsed)
	return nil
}

// Range is a span of time of which each case draws its own, evenly: "40s-60s".
// One that reads "2s" is always two seconds, and the zero Range is none.
type Range struct {
	Min, Max time.Duration
}

// Fixed is the range that holds d alone.
func Fixed(d time.Duration) Range { return Range{Min: d, Max: d} }

// ParseRange reads "2s" or "40s-60s".
func ParseRange(s string) (Range, error) {
	low, high, two := strings.Cut(s, "-")
	if low == "" {
		return Range{}, fmt.Errorf("parsing the range %q: want a duration such as 2s, or two such as 40s-60s", s)
	}
	if !two {
		high = low
	}
	var r Range
	var errs [2]error
	r.Min, errs[0] = time.ParseDuration(low)
	r.Max, errs[1] = time.ParseDuration(high)
	if err := errors.Join(errs[:]...); err != nil {
		return Range{}, fmt.Errorf("parsing the range %q: want a duration such as 2s, or two such as 40s-60s", s)
	}
	if r.Max < r.Min {
		return Range{}, fmt.Errorf("parsing the range %q: its end lies before its beginning", s)
	}
	return r, nil
}

// String is the range as [ParseRange] reads it.
func (r Range) String() string {
	if r.Min == r.Max {
		return r.Min.String()
	}
	return r.Min.String() + "-" + r.Max.String()
}

// MarshalText writes the range as [ParseRange] reads it.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is [ParseRange].
func (r *Range) UnmarshalText(text []byte) error {
	parsed, err := ParseRange(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

// Draw returns a duration of the range.
func (r Range) Draw(random *rand.Rand) time.Duration {
	if r.Max <= r.Min {
		return r.Min
	}
	return r.Min + time.Duration(random.Int64N(int64(r.Max-r.Min)+1))
}
