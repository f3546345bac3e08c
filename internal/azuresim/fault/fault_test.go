package fault_test

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
)

func request() fault.Request {
	return fault.Request{Surface: "arm", Method: "PATCH", Path: "/subscriptions/S/virtualMachineScaleSets/a", Node: "node-0"}
}

func TestMatch(t *testing.T) {
	for name, test := range map[string]struct {
		match fault.Match
		want  bool
	}{
		"nothing asked":               {fault.Match{}, true},
		"everything asked":            {fault.Match{Surface: "arm", Method: "patch", Node: "node-0", Path: "/SUBSCRIPTIONS/s/virtualmachinescalesets/A"}, true},
		"another surface":             {fault.Match{Surface: "imds"}, false},
		"another method":              {fault.Match{Method: "GET"}, false},
		"another node":                {fault.Match{Node: "node-1"}, false},
		"a part of the path":          {fault.Match{Path: "/subscriptions/s"}, false},
		"path that ends in anything":  {fault.Match{Path: "/subscriptions/*"}, true},
		"path that begins anyhow":     {fault.Match{Path: "*/a"}, true},
		"path with a gap":             {fault.Match{Path: "/subscriptions/*/a"}, true},
		"path with two gaps":          {fault.Match{Path: "*virtualMachineScaleSets*"}, true},
		"path with a wrong middle":    {fault.Match{Path: "*virtualMachines/*"}, false},
		"path with a wrong end":       {fault.Match{Path: "/subscriptions/*/b"}, false},
		"path with a wrong beginning": {fault.Match{Path: "/providers/*"}, false},
		"ends may not overlap":        {fault.Match{Path: "/subscriptions/s/virtualmachinescalesets/a*a"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var set fault.Set
			if _, err := set.Add(fault.Fault{Match: test.match, Response: fault.Response{Drop: true}}); err != nil {
				t.Fatal(err)
			}
			if _, got := set.Take(request()); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// A path's pattern is the regular expression in which * is .*, for all short
// texts over a small alphabet.
func TestPatternsMeanWhatTheirExpressionsMean(t *testing.T) {
	var texts []string
	for n := range 1 << 10 {
		texts = append(texts, strings.NewReplacer("0", "a", "1", "b").Replace(strconv.FormatInt(int64(n), 2)))
	}
	for _, pattern := range []string{"*", "a*", "*a", "a*b", "ab*ba", "*ab*", "a*b*a", "*a*b*", "aa*aa", "**", "a**b", "ab"} {
		expression := regexp.MustCompile("^" + strings.ReplaceAll(pattern, "*", ".*") + "$")
		var set fault.Set
		if _, err := set.Add(fault.Fault{Match: fault.Match{Path: pattern}, Response: fault.Response{Drop: true}}); err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			if _, got := set.Take(fault.Request{Path: text}); got != expression.MatchString(text) {
				t.Errorf("%q on %q: got %v", pattern, text, got)
			}
		}
	}
}

func TestFaultsArePlayedInOrderAndAsOftenAsAsked(t *testing.T) {
	var set fault.Set
	for _, f := range []fault.Fault{
		{Times: 2, Response: fault.Response{Status: 429}},
		{Match: fault.Match{Surface: "imds"}, Response: fault.Response{Status: 410}},
		{Response: fault.Response{Status: 503}},
	} {
		if _, err := set.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	var got []int
	for range 4 {
		f, ok := set.Take(request())
		if !ok {
			t.Fatal("no fault")
		}
		got = append(got, f.Response.Status)
	}
	if diff := cmp.Diff([]int{429, 429, 503, 503}, got); diff != "" {
		t.Errorf("played (-want +got):\n%s", diff)
	}
	var played []int
	for _, f := range set.List() {
		played = append(played, f.Played)
	}
	if diff := cmp.Diff([]int{2, 0, 2}, played); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if !set.Remove("3") || set.Remove("3") {
		t.Error("Remove must tell whether there was one")
	}
	if _, ok := set.Take(request()); ok {
		t.Error("a removed fault is still played")
	}
	set.Clear()
	if left := set.List(); len(left) != 0 {
		t.Errorf("Clear left %v", left)
	}
}

func TestFaultLastsAsLongAsItSays(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	set := fault.Set{Now: func() time.Time { return now }, Compress: func(d time.Duration) time.Duration { return d / 10 }}
	if _, err := set.Add(fault.Updating("n1", 410, 70*time.Second)); err != nil {
		t.Fatal(err)
	}
	request := fault.Request{Surface: "imds", Node: "n1"}
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {6999 * time.Millisecond, true}, {time.Millisecond, false}} {
		now = now.Add(step.after)
		if _, got := set.Take(request); got != step.want {
			t.Errorf("%s later: played %v, want %v", step.after, got, step.want)
		}
	}
}

func TestInvalidFaultsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		fault fault.Fault
		words string
	}{
		"nothing to do":        {fault.Fault{}, "does nothing"},
		"no error":             {fault.Fault{Response: fault.Response{Status: 200}}, "not an error"},
		"negative times":       {fault.Fault{Times: -1, Response: fault.Response{Drop: true}}, "times"},
		"negative time to go":  {fault.Fault{For: -1, Response: fault.Response{Drop: true}}, "for must not be"},
		"negative delay":       {fault.Fault{Response: fault.Response{Delay: -1, Drop: true}}, "delay"},
		"drop with a status":   {fault.Fault{Response: fault.Response{Drop: true, Status: 500}}, "choose one"},
		"operation of no ARM":  {fault.Fault{Match: fault.Match{Surface: "imds"}, Response: fault.Response{FailOperation: true}}, "surface: arm"},
		"negative latency":     {fault.Fault{Match: fault.Match{Surface: "arm"}, Response: fault.Response{OperationLatency: -1}}, "operationLatency"},
		"lost answer, dropped": {fault.Fault{Response: fault.Response{LoseAnswer: true, Drop: true}}, "choose one"},
		"lost operation":       {fault.Fault{Response: fault.Response{LoseOperation: true}}, "surface: arm"},
		"operation and status": {fault.Fault{Match: fault.Match{Surface: "arm"}, Response: fault.Response{FailOperation: true, Status: 500}}, "choose one"},
	} {
		t.Run(name, func(t *testing.T) {
			var set fault.Set
			if _, err := set.Add(test.fault); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want an error that says %q", err, test.words)
			}
		})
	}
}

func TestDurationReadsAsGoWritesIt(t *testing.T) {
	var r fault.Response
	if err := json.Unmarshal([]byte(`{"delay":"1.5s"}`), &r); err != nil || time.Duration(r.Delay) != 1500*time.Millisecond {
		t.Errorf("got %v, %v", r.Delay, err)
	}
	text, err := json.Marshal(r)
	if err != nil || string(text) != `{"delay":"1.5s"}` {
		t.Errorf("got %s, %v", text, err)
	}
	if err := json.Unmarshal([]byte(`{"delay":"soon"}`), &r); err == nil {
		t.Error("an unreadable delay passed")
	}
}
