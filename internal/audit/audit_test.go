package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

func logged(t *testing.T, record audit.Record) map[string]any {
	t.Helper()
	var out bytes.Buffer
	record.Log(t.Context(), slog.New(slog.NewJSONHandler(&out, nil)))
	line := map[string]any{}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", out.String(), err)
	}
	delete(line, "time")
	return line
}

func TestOneLineSaysItAll(t *testing.T) {
	got := logged(t, audit.Record{
		Remote: netip.MustParseAddr("10.0.0.1"), Route: audit.RouteToken, Pod: identity.Key{Namespace: "ns", Name: "pod"}, UID: "u-1",
		ServiceAccount: "app", Identity: identity.Key{Namespace: "ns", Name: "id"}, Resource: "https://vault.azure.net",
		Reason: v1.ReasonIssued, Status: 200, Took: time.Millisecond,
	})
	want := map[string]any{
		"level": "INFO", "msg": "decided", "outcome": "issued", "reason": "Issued", "pod": "ns/pod", "podUID": "u-1", "serviceAccount": "app",
		"identity": "ns/id", "resource": "https://vault.azure.net", "route": "token", "status": 200.0, "remote": "10.0.0.1", "took": 1e6,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestOutcomes(t *testing.T) {
	for reason, want := range map[v1.Reason]string{
		v1.ReasonIssued: "issued", v1.ReasonException: "forwarded", v1.ReasonForwarded: "forwarded", v1.ReasonNotBound: "refused", "": "refused",
	} {
		if got := (&audit.Record{Reason: reason}).Outcome(); got != want {
			t.Errorf("%s: got %s, want %s", reason, got, want)
		}
	}
}

func TestARefusalBeforeTheCallerIsKnown(t *testing.T) {
	got := logged(t, audit.Record{Reason: v1.ReasonInternalError, Err: errors.New("the cause")})
	if got["level"] != "ERROR" || got["error"] != "the cause" || got["pod"] != "" || got["identity"] != "" {
		t.Errorf("got %v", got)
	}
}
