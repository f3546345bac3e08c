package load

import (
	"fmt"
	"slices"
)

// Series are the figures of several rounds.
type Series []float64

// Median returns the middle of them; zero if there are none.
func (s Series) Median() float64 { return s.Quantile(0.5) }

// Quantile returns the smallest figure that at least that part of them is not
// above.
func (s Series) Quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, max(0, int(q*float64(len(sorted))+0.999999)-1))]
}

// Spread writes the median, the least and the most.
func (s Series) Spread(write func(float64) string) string {
	if len(s) == 0 {
		return "none"
	}
	return fmt.Sprintf("%s (%s to %s)", write(s.Median()), write(slices.Min(s)), write(slices.Max(s)))
}

// Over divides figures of the same rounds, so that what slowed a round down as a
// whole is in neither.
func (s Series) Over(other Series) Series {
	out := make(Series, 0, len(s))
	for i := range min(len(s), len(other)) {
		if other[i] > 0 {
			out = append(out, s[i]/other[i])
		}
	}
	return out
}
