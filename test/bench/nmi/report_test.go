package main

import (
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/nmi/load"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

func TestVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		row    report.Row
		missed bool
	}{
		"at most, and less":           {atMost("w", load.Series{2, 2, 2}, load.Series{2, 3, 2}, 1.5, ratio), false},
		"at most, and more":           {atMost("w", load.Series{2, 2, 2}, load.Series{4, 4, 2}, 1.5, ratio), true},
		"at most, and nothing was":    {atMost("w", nil, nil, 1.5, ratio), true},
		"at least, and more":          {atLeast("w", load.Series{2, 2, 2}, load.Series{2, 2, 1}, ratio), false},
		"at least, and less":          {atLeast("w", load.Series{2, 2, 2}, load.Series{1, 1, 2}, ratio), true},
		"at least, and nothing was":   {atLeast("w", nil, nil, ratio), true},
		"bounded, and below":          {bounded("w", 40, 40, "MiB"), false},
		"bounded, and above":          {bounded("w", 40.5, 40, "MiB"), true},
		"none":                        {none("w", 0), false},
		"none, and some":              {none("w", 1), true},
		"a figure that has no goal":   {report.Row{What: "w", Here: "3"}, false},
		"each round is a comparison":  {atMost("w", load.Series{1, 10, 1}, load.Series{1, 10, 9}, 1.1, ratio), false},
		"a round without a bare part": {atMost("w", load.Series{0, 1}, load.Series{5, 1}, 1.1, ratio), false},
	} {
		t.Run(name, func(t *testing.T) {
			if test.row.Missed() != test.missed {
				t.Errorf("missed: %v, %+v", test.row.Missed(), test.row)
			}
			text := report.Table("bare", "NMI", []report.Row{test.row})
			if strings.Contains(text, "FAIL") != test.missed || !strings.Contains(text, "w") {
				t.Errorf("printed %s", text)
			}
		})
	}
}
