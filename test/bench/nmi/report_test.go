package main

import (
	"strings"
	"testing"
)

func TestQuantiles(t *testing.T) {
	hundred := make(series, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for name, test := range map[string]struct {
		of   series
		q    float64
		want float64
	}{
		"nothing":               {nil, 0.5, 0},
		"one":                   {series{3}, 0.99, 3},
		"the median of three":   {series{9, 1, 5}, 0.5, 5},
		"the median of a 100":   {hundred, 0.5, 50},
		"the 99th of a hundred": {hundred, 0.99, 99},
		"the least":             {hundred, 0, 1},
		"the most":              {hundred, 1, 100},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.of.quantile(test.q); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		row    row
		missed bool
	}{
		"at most, and less":           {atMost("w", series{2, 2, 2}, series{2, 3, 2}, 1.5, ratio), false},
		"at most, and more":           {atMost("w", series{2, 2, 2}, series{4, 4, 2}, 1.5, ratio), true},
		"at most, and nothing was":    {atMost("w", nil, nil, 1.5, ratio), true},
		"at least, and more":          {atLeast("w", series{2, 2, 2}, series{2, 2, 1}, 0.6, ratio), false},
		"at least, and less":          {atLeast("w", series{2, 2, 2}, series{1, 1, 2}, 0.6, ratio), true},
		"at least, and nothing was":   {atLeast("w", nil, nil, 0.6, ratio), true},
		"bounded, and below":          {bounded("w", 40, 40, "MiB"), false},
		"bounded, and above":          {bounded("w", 40.5, 40, "MiB"), true},
		"none":                        {none("w", 0), false},
		"none, and some":              {none("w", 1), true},
		"a figure that has no goal":   {row{what: "w", ours: "3"}, false},
		"each round is a comparison":  {atMost("w", series{1, 10, 1}, series{1, 10, 9}, 1.1, ratio), false},
		"a round without a bare part": {atMost("w", series{0, 1}, series{5, 1}, 1.1, ratio), false},
	} {
		t.Run(name, func(t *testing.T) {
			if test.row.missed() != test.missed {
				t.Errorf("missed: %v, %+v", test.row.missed(), test.row)
			}
			text := table([]row{test.row})
			if strings.Contains(text, "FAIL") != test.missed || !strings.Contains(text, "w") {
				t.Errorf("printed %s", text)
			}
		})
	}
}
