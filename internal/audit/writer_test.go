package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
)

// slow is a log that takes no line before it may.
type slow struct {
	bytes.Buffer
	may chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	<-s.may
	return s.Buffer.Write(p)
}

func (s *slow) lines(t *testing.T) []map[string]any {
	t.Helper()
	var out []map[string]any
	for text := range bytes.SplitSeq(bytes.TrimSpace(s.Bytes()), []byte("\n")) {
		line := map[string]any{}
		if err := json.Unmarshal(text, &line); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		out = append(out, line)
	}
	return out
}

func TestALogThatIsStuckHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const records = 10_000
		log := &slow{may: make(chan struct{})}
		dropped := 0
		w := audit.NewWriter(slog.New(slog.NewJSONHandler(log, nil)), func() { dropped++ })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { w.Run(ctx); close(ended) }()
		begin := time.Now()
		for n := range records {
			w.Write(&audit.Record{Resource: fmt.Sprint(n), Reason: v1.ReasonIssued})
			synctest.Wait() // the writer has taken what it can
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("writing waited for %s", took)
		}
		if dropped == 0 || dropped >= records-1000 {
			t.Errorf("%d of %d records were left out", dropped, records)
		}
		close(log.may)
		cancel()
		<-ended
		lines, decided, told := log.lines(t), 0, 0
		for _, line := range lines {
			if line["msg"] == "decided" {
				decided++
				continue
			}
			told += int(line["dropped"].(float64))
		}
		if decided != records-dropped || told != dropped {
			t.Errorf("%d lines and %d told to be missing, of %d records of which %d were dropped", decided, told, records, dropped)
		}
	})
}

func TestALineHasTheTimeOfItsDecision(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	log := &slow{may: make(chan struct{})}
	close(log.may)
	w := audit.NewWriter(slog.New(slog.NewJSONHandler(log, nil)).With("node", "n"), func() { t.Error("a record was left out") })
	w.Write(&audit.Record{At: at, Reason: v1.ReasonIssued})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.Run(ctx) // what was taken in is written at the end
	if got := log.lines(t)[0]; got["time"] != "2026-01-02T03:04:05.006Z" || got["node"] != "n" {
		t.Errorf("got %v", got)
	}
}

// What a pod asks for is its own to choose, but not how long a line is.
func TestALineIsBounded(t *testing.T) {
	got := logged(t, audit.Record{Resource: string(bytes.Repeat([]byte("é"), 10_000))})
	if resource, _ := got["resource"].(string); len(resource) > 300 || resource[:2] != "é" {
		t.Errorf("the resource has %d bytes", len(resource))
	}
}
