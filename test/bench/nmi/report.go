package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/nmi/load"
)

// row is one figure, beside that of a bare handler where there is one.
type row struct {
	what, bare, ours string
	goal             string // empty: there is none
	met              bool
}

func (r row) missed() bool { return r.goal != "" && !r.met }

func (r row) verdict() string {
	switch {
	case r.goal == "":
		return ""
	case r.met:
		return "pass"
	}
	return "FAIL"
}

// table lines the figures up.
func table(rows []row) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tbare\tNMI\tgoal\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, r.bare, r.ours, r.goal, r.verdict())
	}
	_ = w.Flush() // a Builder takes everything
	return out.String()
}

func thousands(n float64) string { return fmt.Sprintf("%.1f k", n/1000) }

func micros(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

func ratio(n float64) string { return fmt.Sprintf("%.2f", n) }

// atMost compares two load.Series by the median of their ratios.
func atMost(what string, bare, ours load.Series, limit float64, write func(float64) string) row {
	got := ours.Over(bare)
	return row{
		what: what, bare: bare.Spread(write), ours: ours.Spread(write) + ", × " + got.Spread(ratio),
		goal: "≤ " + ratio(limit) + " ×", met: got.Median() <= limit && len(got) > 0,
	}
}

// atLeast is the reverse, with [leastOfBare].
func atLeast(what string, bare, ours load.Series, write func(float64) string) row {
	out := atMost(what, bare, ours, leastOfBare, write)
	out.goal, out.met = "≥ "+ratio(leastOfBare)+" ×", ours.Over(bare).Median() >= leastOfBare
	return out
}

// bounded is a figure with an upper limit.
func bounded(what string, ours, limit float64, unit string) row {
	return row{what: what, ours: fmt.Sprintf("%.4g %s", ours, unit), goal: fmt.Sprintf("≤ %.4g %s", limit, unit), met: ours <= limit}
}

// none is a count that must be zero.
func none(what string, count int) row {
	return row{what: what, ours: fmt.Sprint(count), goal: "0", met: count == 0}
}
