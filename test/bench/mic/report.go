package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// row is one figure.
type row struct {
	what, old, ours string
	goal            string // empty: there is none
	met             bool
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

// title is a line between figures.
func title(format string, args ...any) row { return row{what: "\n" + fmt.Sprintf(format, args...)} }

// shown is a figure without a goal.
func shown(what, old, ours string) row { return row{what: what, old: old, ours: ours} }

// atMost is a figure that must not be above a limit; unit follows the numbers.
func atMost(what, old string, ours, limit float64, unit string) row {
	return row{what: what, old: old, ours: figure(ours, unit), goal: "≤ " + figure(limit, unit), met: ours <= limit}
}

// exactly is a count that must be just this.
func exactly(what, old string, ours, want int) row {
	return row{what: what, old: old, ours: fmt.Sprint(ours), goal: fmt.Sprint(want), met: ours == want}
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

// table lines the figures up.
func table(rows []row) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\tv1.8.17\tthis\tgoal\t") // a Builder takes everything
	for _, r := range rows {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, r.old, r.ours, r.goal, r.verdict())
	}
	_ = w.Flush()
	return out.String()
}

// most is the largest of the numbers.
func most(counts map[string]int) int {
	out := 0
	for _, n := range counts {
		out = max(out, n)
	}
	return out
}
