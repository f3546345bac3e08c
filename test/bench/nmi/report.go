package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
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

// series are the figures of several rounds.
type series []float64

// median returns the middle of them; zero if there are none.
func (s series) median() float64 { return s.quantile(0.5) }

// quantile returns the smallest figure that at least that part of them is not
// above.
func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, max(0, int(q*float64(len(sorted))+0.999999)-1))]
}

// spread writes the median, the least and the most.
func (s series) spread(write func(float64) string) string {
	if len(s) == 0 {
		return "none"
	}
	return fmt.Sprintf("%s (%s to %s)", write(s.median()), write(slices.Min(s)), write(slices.Max(s)))
}

// over divides figures of the same rounds, so that what slowed a round down as a
// whole is in neither.
func (s series) over(other series) series {
	out := make(series, 0, len(s))
	for i := range min(len(s), len(other)) {
		if other[i] > 0 {
			out = append(out, s[i]/other[i])
		}
	}
	return out
}

func thousands(n float64) string { return fmt.Sprintf("%.1f k", n/1000) }

func micros(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

func ratio(n float64) string { return fmt.Sprintf("%.2f", n) }

// atMost compares two series by the median of their ratios.
func atMost(what string, bare, ours series, limit float64, write func(float64) string) row {
	got := ours.over(bare)
	return row{
		what: what, bare: bare.spread(write), ours: ours.spread(write) + ", × " + got.spread(ratio),
		goal: "≤ " + ratio(limit) + " ×", met: got.median() <= limit && len(got) > 0,
	}
}

// atLeast is the reverse.
func atLeast(what string, bare, ours series, limit float64, write func(float64) string) row {
	out := atMost(what, bare, ours, limit, write)
	out.goal, out.met = "≥ "+ratio(limit)+" ×", ours.over(bare).median() >= limit
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
