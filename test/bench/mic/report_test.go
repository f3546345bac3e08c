package main

import (
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		row     row
		verdict string
		ours    string
	}{
		"below the limit":   {atMost("x", "", 0.05, 0.1, "s"), "pass", "0.050 s"},
		"at the limit":      {atMost("x", "", 600, 600, "MiB"), "pass", "600 MiB"},
		"above the limit":   {atMost("x", "", 60.04, 60, "s"), "FAIL", "60.0 s"},
		"the very number":   {exactly("x", "", 0, 0), "pass", "0"},
		"one too many":      {exactly("x", "", 2001, 2000), "FAIL", "2001"},
		"a figure to show":  {shown("x", "", "5"), "", "5"},
		"between two parts": {title("x"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.row.verdict(); got != test.verdict || test.row.missed() != (test.verdict == "FAIL") || test.row.ours != test.ours {
				t.Errorf("got %q, missed %v, %q", got, test.row.missed(), test.row.ours)
			}
		})
	}
	out := table([]row{title("(a) something"), exactly("writes", "500", 1, 0)})
	for _, want := range []string{"v1.8.17", "(a) something", "writes", "FAIL"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
}
