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

func TestAuditCountsOneUsersWrites(t *testing.T) {
	log := `{"verb":"create","user":{"username":"mic"},"objectRef":{"resource":"azureassignedidentities"},"responseStatus":{"code":201}}
{"verb":"patch","user":{"username":"mic"},"objectRef":{"resource":"azureidentities","subresource":"status"},"responseStatus":{"code":409}}
{"verb":"update","user":{"username":"mic"},"objectRef":{"resource":"leases"},"responseStatus":{"code":200}}
{"verb":"list","user":{"username":"mic"},"objectRef":{"resource":"pods"},"responseStatus":{"code":200}}
{"verb":"create","user":{"username":"somebody"},"objectRef":{"resource":"pods"},"responseStatus":{"code":201}}
{"verb":"create","user":{"username":"mic"},"objectRef":{"res`
	counts := writes{}
	read := counts.add([]byte(log), "mic")
	if counts["create azureassignedidentities"] != 1 || counts.total() != 2 || counts.refused() != "refused: 1 × patch azureidentities/status: 409" {
		t.Errorf("got %v", counts)
	}
	if want := strings.LastIndex(log, "\n") + 1; read != want {
		t.Errorf("read %d bytes, want %d: the last line is still being written", read, want)
	}
}

func TestStatIsRead(t *testing.T) {
	// The name may hold blanks and parentheses.
	stat := "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1000 200"
	if got, err := cpuOf(stat); err != nil || got.Seconds() != 3 {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := cpuOf("4242 (x"); err == nil {
		t.Error("half a line is read")
	}
	if got, err := memoryOf("Name:\tmic\nVmHWM:\t  614400 kB\nVmRSS:\t  102400 kB\n", "VmHWM"); err != nil || got != 600 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestMetricsAreSummed(t *testing.T) {
	text := "# HELP workqueue_depth x\nworkqueue_depth{controller=\"a\",name=\"a\",priority=\"0\"} 3\nworkqueue_depth{name=\"b\"} 4\nworkqueue_depth_other 9\ngo_memstats_alloc_bytes_total 1.5e+06\n"
	if got := sum(text, "workqueue_depth"); got != 7 {
		t.Errorf("got %v", got)
	}
	if got := sum(text, "go_memstats_alloc_bytes_total"); got != 1.5e6 {
		t.Errorf("got %v", got)
	}
}
