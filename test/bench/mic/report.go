package main

import (
	"fmt"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

// shown is a figure without a goal.
func shown(what, old, ours string) report.Row {
	return report.Row{What: what, Elsewhere: old, Here: ours}
}

// atMost is a figure that must not be above a limit; unit follows the numbers.
func atMost(what, old string, ours, limit float64, unit string) report.Row {
	return report.Row{What: what, Elsewhere: old, Here: figure(ours, unit), Goal: "≤ " + figure(limit, unit), Met: ours <= limit}
}

// exactly is a count that must be just this.
func exactly(what, old string, ours, want int) report.Row {
	return report.Row{What: what, Elsewhere: old, Here: fmt.Sprint(ours), Goal: fmt.Sprint(want), Met: ours == want}
}

// figure writes a number with three significant digits at the most.
func figure(n float64, unit string) string {
	digits := 0
	switch {
	case n == float64(int(n)):
	case n < 1:
		digits = 3
	case n < 100:
		digits = 1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.*f %s", digits, n, unit), " ")
}

// most is the largest of the numbers.
func most(counts map[string]int) int {
	out := 0
	for _, n := range counts {
		out = max(out, n)
	}
	return out
}
