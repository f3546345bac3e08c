package main

import (
	"fmt"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/nmi/load"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

func thousands(n float64) string { return fmt.Sprintf("%.1f k", n/1000) }

func micros(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

func ratio(n float64) string { return fmt.Sprintf("%.2f", n) }

// atMost compares two load.Series by the median of their ratios.
func atMost(what string, bare, ours load.Series, limit float64, write func(float64) string) report.Row {
	got := ours.Over(bare)
	return report.Row{
		What: what, Elsewhere: bare.Spread(write), Here: ours.Spread(write) + ", × " + got.Spread(ratio),
		Goal: "≤ " + ratio(limit) + " ×", Met: got.Median() <= limit && len(got) > 0,
	}
}

// atLeast is the reverse, with [leastOfBare].
func atLeast(what string, bare, ours load.Series, write func(float64) string) report.Row {
	out := atMost(what, bare, ours, leastOfBare, write)
	out.Goal, out.Met = "≥ "+ratio(leastOfBare)+" ×", ours.Over(bare).Median() >= leastOfBare
	return out
}

// bounded is a figure with an upper limit.
func bounded(what string, ours, limit float64, unit string) report.Row {
	return report.Row{What: what, Here: fmt.Sprintf("%.4g %s", ours, unit), Goal: fmt.Sprintf("≤ %.4g %s", limit, unit), Met: ours <= limit}
}

// none is a count that must be zero.
func none(what string, count int) report.Row {
	return report.Row{What: what, Here: fmt.Sprint(count), Goal: "0", Met: count == 0}
}
