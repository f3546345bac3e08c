// Package report is the table in which a bench prints its figures beside others'
// and beside their goals.
//
// It must not measure anything, nor know what a figure is of.
package report

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Row is one figure.
type Row struct {
	// What it is of, what it is elsewhere, and what it is here.
	What, Elsewhere, Here string
	// Goal is in words; empty if there is none.
	Goal string
	// Met says whether the goal was.
	Met bool
}

// Title is a line between figures.
func Title(format string, args ...any) Row { return Row{What: "\n" + fmt.Sprintf(format, args...)} }

// Missed reports whether there is a goal that was not met.
func (r Row) Missed() bool { return r.Goal != "" && !r.Met }

// Verdict is pass or FAIL; empty where there is no goal.
func (r Row) Verdict() string {
	switch {
	case r.Goal == "":
		return ""
	case r.Met:
		return "pass"
	}
	return "FAIL"
}

// Table lines the figures up, under the names of elsewhere and here.
func Table(elsewhere, here string, rows []Row) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "\t%s\t%s\tgoal\t\n", elsewhere, here) // a Builder takes everything
	for _, r := range rows {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.What, r.Elsewhere, r.Here, r.Goal, r.Verdict())
	}
	_ = w.Flush()
	return out.String()
}
