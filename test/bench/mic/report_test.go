package main

import (
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

func TestVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		row     report.Row
		verdict string
		ours    string
	}{
		"below the limit":   {atMost("x", "", 0.05, 0.1, "s"), "pass", "0.050 s"},
		"at the limit":      {atMost("x", "", 600, 600, "MiB"), "pass", "600 MiB"},
		"above the limit":   {atMost("x", "", 60.04, 60, "s"), "FAIL", "60.0 s"},
		"the very number":   {exactly("x", "", 0, 0), "pass", "0"},
		"one too many":      {exactly("x", "", 2001, 2000), "FAIL", "2001"},
		"a figure to show":  {shown("x", "", "5"), "", "5"},
		"between two parts": {report.Title("x"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.row.Verdict(); got != test.verdict || test.row.Missed() != (test.verdict == "FAIL") || test.row.Here != test.ours {
				t.Errorf("got %q, missed %v, %q", got, test.row.Missed(), test.row.Here)
			}
		})
	}
	out := report.Table("v1.8.17", "this", []report.Row{report.Title("(a) something"), exactly("writes", "500", 1, 0)})
	for _, want := range []string{"v1.8.17", "(a) something", "writes", "FAIL"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
}
