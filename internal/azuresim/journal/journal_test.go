package journal_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

func sequence(entries []journal.Entry) []uint64 {
	var seq []uint64
	for _, e := range entries {
		seq = append(seq, e.Seq)
	}
	return seq
}

func TestSince(t *testing.T) {
	j := journal.New(0, time.Now)
	for range 4 {
		j.Record(journal.Entry{})
	}
	for since, want := range map[uint64][]uint64{0: {1, 2, 3, 4}, 1: {2, 3, 4}, 3: {4}, 4: nil, 99: nil} {
		if diff := cmp.Diff(want, sequence(j.Since(since))); diff != "" {
			t.Errorf("since %d (-want +got):\n%s", since, diff)
		}
	}
}

func TestOldEntriesAreDropped(t *testing.T) {
	j := journal.New(10, time.Now)
	for range 25 {
		j.Record(journal.Entry{})
	}
	got := sequence(j.Since(0))
	if len(got) != 10 || got[0] != 16 || got[9] != 25 {
		t.Errorf("got %v, want the last ten", got)
	}
	if diff := cmp.Diff([]uint64{24, 25}, sequence(j.Since(23))); diff != "" {
		t.Errorf("since 23 (-want +got):\n%s", diff)
	}
}

func TestUnexpected(t *testing.T) {
	j := journal.New(0, time.Now)
	j.Record(journal.Entry{})
	j.Record(journal.Entry{Unexpected: true})
	if diff := cmp.Diff([]uint64{2}, sequence(j.Unexpected())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint64{1, 2}, sequence(j.Since(0))); diff != "" {
		t.Errorf("Unexpected changed the journal (-want +got):\n%s", diff)
	}
}

func TestWaitReturnsWhatIsThereOrBlocksUntilItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := journal.New(0, time.Now)
		j.Record(journal.Entry{Surface: journal.ARM, Status: 200})
		isARM := func(e journal.Entry) bool { return e.Surface == journal.ARM }
		if e, err := j.Wait(t.Context(), isARM); err != nil || e.Seq != 1 {
			t.Errorf("got %v, %v", e, err)
		}
		found := make(chan journal.Entry)
		go func() {
			e, err := j.WaitAfter(t.Context(), 1, isARM)
			if err != nil {
				t.Error(err)
			}
			found <- e
		}()
		synctest.Wait()
		j.Record(journal.Entry{Surface: journal.IMDS})
		synctest.Wait()
		select {
		case e := <-found:
			t.Errorf("returned early with %v", e)
		default:
		}
		j.Record(journal.Entry{Surface: journal.ARM})
		if e := <-found; e.Seq != 3 {
			t.Errorf("got %v, want entry 3", e)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := journal.New(0, time.Now).Wait(ctx, func(journal.Entry) bool { return true })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestEntryOnOneLine(t *testing.T) {
	e := journal.Entry{
		Seq: 7, Surface: journal.ARM, Method: "GET", Host: "management.azure.com", Path: "/x", Query: "api-version=1",
		Remote: netip.MustParseAddr("127.0.0.1"), Node: "node-0", Status: 404, Code: "NotFound", Detail: "no such route",
	}
	want := "#7 arm GET management.azure.com/x?api-version=1 from 127.0.0.1 node-0: 404 NotFound (no such route)"
	if got := e.String(); got != want || strings.Contains(got, "\n") {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCountsOutliveTheEntries(t *testing.T) {
	j := journal.New(1, time.Now)
	for range 3 {
		j.Record(journal.Entry{Surface: journal.IMDS, Node: "n", Method: "GET", Status: 200})
	}
	j.Record(journal.Entry{Surface: journal.ARM, Method: "PATCH", Status: 429, Throttle: &journal.Throttle{Bucket: "Update"}})
	want := []journal.Count{
		{Surface: "arm", Method: "PATCH", Status: 429, Throttle: "Update", N: 1},
		{Surface: "imds", Node: "n", Method: "GET", Status: 200, N: 3},
	}
	if diff := cmp.Diff(want, j.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestOwnFault(t *testing.T) {
	for name, test := range map[string]struct {
		throttle *journal.Throttle
		want     bool
	}{
		"not refused":                   {nil, false},
		"it used the limit up":          {&journal.Throttle{Bucket: "b"}, true},
		"others used it up":             {&journal.Throttle{Bucket: "b", Foreign: true}, false},
		"others did, but it came early": {&journal.Throttle{Bucket: "b", Foreign: true, Early: true}, true},
	} {
		if got := (journal.Entry{Throttle: test.throttle}).IsOwnFault(); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
