package replica

import (
	"strings"
	"testing"
)

func TestAuditCountsOneUsersWrites(t *testing.T) {
	log := `{"verb":"create","user":{"username":"mic"},"objectRef":{"resource":"azureassignedidentities"},"responseStatus":{"code":201}}
{"verb":"patch","user":{"username":"mic"},"objectRef":{"resource":"azureidentities","subresource":"status"},"responseStatus":{"code":409}}
{"verb":"update","user":{"username":"mic"},"objectRef":{"resource":"leases"},"responseStatus":{"code":200}}
{"verb":"update","user":{"username":"mic"},"objectRef":{"resource":"endpoints"},"responseStatus":{"code":200}}
{"verb":"create","user":{"username":"mic"},"objectRef":{"resource":"events","name":"aad-pod-identity-mic.18ea5e6f3e5b9cdf"},"responseStatus":{"code":201}}
{"verb":"create","user":{"username":"mic"},"objectRef":{"resource":"events","name":"web.18ea5e6f3e5b9cdf"},"responseStatus":{"code":201}}
{"verb":"list","user":{"username":"mic"},"objectRef":{"resource":"pods"},"responseStatus":{"code":200}}
{"verb":"create","user":{"username":"somebody"},"objectRef":{"resource":"pods"},"responseStatus":{"code":201}}
{"verb":"create","user":{"username":"mic"},"objectRef":{"res`
	counts := Writes{}
	read := counts.add([]byte(log), "mic")
	if counts["create azureassignedidentities"] != 1 || counts["create events"] != 1 || counts.Total() != 3 || counts.Refused() != "refused: 1 × patch azureidentities/status: 409" {
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
	if got := Sum(text, "workqueue_depth"); got != 7 {
		t.Errorf("got %v", got)
	}
	if got := Sum(text, "go_memstats_alloc_bytes_total"); got != 1.5e6 {
		t.Errorf("got %v", got)
	}
}
