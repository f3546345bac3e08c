package leave_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/leave"
)

// apiServer answers as one does whose DaemonSet is in a state: an HTTP status, and
// what the object's metadata has beside its name.
func apiServer(t *testing.T, status int, metadata string) *rest.Config {
	t.Helper()
	const pods = `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{},"items":[
		{"metadata":{"name":"p","namespace":"n","ownerReferences":[{"apiVersion":"apps/v1","kind":"DaemonSet","name":"d","uid":"u","controller":true}]}}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/pods"):
			_, _ = w.Write([]byte(pods))
		case status == http.StatusOK:
			_, _ = fmt.Fprintf(w, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"d","namespace":"n"%s}}`, metadata)
		default:
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"details":{"name":"d"}}`, status, reasonOf(status))
		}
	}))
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL}
}

func reasonOf(status int) string { return strings.ReplaceAll(http.StatusText(status), " ", "") }

// told is what an agent that ends has done and said.
type told struct {
	Removed bool
	Reports []v1.Reason
}

func TestRun(t *testing.T) {
	const deleted = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	mine := identity.Key{Namespace: "n", Name: "p"}
	removed := told{Removed: true, Reports: []v1.Reason{v1.ReasonRulesRemoved}}
	for name, test := range map[string]struct {
		pod                 identity.Key
		status              int
		metadata            string
		removing, reporting error
		want                told
		words               string
	}{
		"the daemonset is there":             {mine, 200, "", nil, nil, told{}, "rules stay\" daemonSet=n/d"},
		"it is being deleted":                {mine, 200, deleted, nil, nil, removed, "rules are removed: the DaemonSet is deleted\" daemonSet=n/d tables=3"},
		"it is gone":                         {mine, 404, "", nil, nil, removed, "rules are removed"},
		"the agent is in no pod":             {identity.Key{}, 404, "", nil, nil, told{}, "rules stay\"\n"},
		"it may not be read":                 {mine, 403, "", nil, nil, told{}, "it is not known whether the DaemonSet is deleted"},
		"the rules cannot be removed":        {mine, 404, "", errors.New("permission denied"), nil, told{Removed: true, Reports: []v1.Reason{v1.ReasonRulesLeft}}, "rules are not all gone: nmi cleanup removes them\" error=\"permission denied"},
		"that they are cannot be said":       {mine, 404, "", nil, errors.New("no way"), removed, "node report does not say how the node was left\" error=\"no way"},
		"nor that they could not be, either": {mine, 404, "", errors.New("permission denied"), errors.New("no way"), told{Removed: true, Reports: []v1.Reason{v1.ReasonRulesLeft}}, "error=\"no way"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			var got told
			began := time.Now()
			inTime := func(ctx context.Context) {
				if end, bounded := ctx.Deadline(); !bounded || end.Sub(began) > leave.Timeout+time.Second {
					t.Errorf("it may take until %s", end)
				}
			}
			leave.Run(t.Context(), leave.Options{
				Config: apiServer(t, test.status, test.metadata), Pod: test.pod, Log: slog.New(slog.NewTextHandler(&log, nil)),
				Remove: func(ctx context.Context) ([]any, error) {
					inTime(ctx)
					got.Removed = true
					return []any{"tables", 3}, test.removing
				},
				Report: func(ctx context.Context, reason v1.Reason, message string) error {
					inTime(ctx)
					got.Reports = append(got.Reports, reason)
					if test.removing != nil && !strings.Contains(message, test.removing.Error()) {
						t.Errorf("it reports %q without %q", message, test.removing)
					}
					return test.reporting
				},
			})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !strings.Contains(log.String(), test.words) {
				t.Errorf("the log does not say %q:\n%s", test.words, log.String())
			}
		})
	}
}

// TestRunWithoutReport: where no report is written, the rules go all the same.
func TestRunWithoutReport(t *testing.T) {
	var removed []string
	leave.Run(t.Context(), leave.Options{
		Config: apiServer(t, 404, ""), Pod: identity.Key{Namespace: "n", Name: "p"}, Log: slog.New(slog.DiscardHandler),
		Remove: func(context.Context) ([]any, error) { removed = append(removed, "rules"); return nil, nil },
	})
	if !slices.Equal(removed, []string{"rules"}) {
		t.Errorf("removed %v", removed)
	}
}
