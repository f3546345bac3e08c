// Package journal keeps what the simulator was asked and what it answered, so
// that a test can assert on requests and wait for them.
//
// It is a leaf: plain entries, a bounded list, a blocking wait. It must never
// hold a token, a secret or a body, and it must not decide what is unexpected:
// the surfaces do.
package journal

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The surfaces that record entries, as they stand in [Entry.Surface].
const (
	ARM      = "arm"
	IMDS     = "imds"
	Entra    = "entra"
	KeyVault = "keyvault"
	Storage  = "storage"
	HTTPS    = "https" // a host name that no surface serves
	TLS      = "tls"   // a handshake for a name that is not Azure's
)

// DefaultLimit is how many entries a journal keeps by default.
const DefaultLimit = 20_000

// Entry is one request and its answer.
type Entry struct {
	Seq     uint64     `json:"seq"`
	Time    time.Time  `json:"time"`
	Surface string     `json:"surface"`
	Node    string     `json:"node,omitempty"` // the node whose prefix holds Remote, if any
	Remote  netip.Addr `json:"remote"`
	Method  string     `json:"method,omitempty"`
	Host    string     `json:"host,omitempty"`
	Path    string     `json:"path,omitempty"`
	Query   string     `json:"query,omitempty"`  // values of unknown names are masked
	Status  int        `json:"status,omitempty"` // 0: the connection was dropped
	Code    string     `json:"code,omitempty"`   // the surface's error code

	// Unexpected marks what Azure does not offer or this simulator does not
	// know: tests fail on it. Detail says why, or names a fault that was played.
	Unexpected bool   `json:"unexpected,omitempty"`
	Detail     string `json:"detail,omitempty"`

	// Throttle is set where a limit refused the request.
	Throttle *Throttle `json:"throttle,omitempty"`

	// InFlight is how many requests for tokens the node's IMDS had before it at
	// once, this one among them.
	InFlight int `json:"inFlight,omitempty"`

	// Principal is the object ID that asked (ARM, Key Vault, Storage) or was given a
	// token (IMDS, Entra); Resource what the token was for.
	Principal string `json:"principal,omitempty"`
	Resource  string `json:"resource,omitempty"`

	// ARM PATCH only: the identities named, as the client wrote them.
	Added   []string `json:"added,omitempty"`
	Removed []string `json:"removed,omitempty"`
	IfMatch string   `json:"ifMatch,omitempty"`
}

// Throttle is a refusal for having asked too much.
type Throttle struct {
	// Bucket is the limit that was reached, as ARM's headers call it.
	Bucket string `json:"bucket"`
	// Foreign: without the requests of others there would have been room.
	Foreign bool `json:"foreign,omitempty"`
	// Early: the one who asked had been told to wait, and did not.
	Early bool `json:"early,omitempty"`
}

// IsOwnFault reports whether whoever asked is to blame for a refusal: it used
// the limit up itself, or did not wait as it was told.
func (e Entry) IsOwnFault() bool {
	return e.Throttle != nil && (!e.Throttle.Foreign || e.Throttle.Early)
}

// String is the entry on one line, for a test's failure message.
func (e Entry) String() string {
	line := fmt.Sprintf("#%d %s %s %s%s", e.Seq, e.Surface, e.Method, e.Host, e.Path)
	if e.Query != "" {
		line += "?" + e.Query
	}
	line += fmt.Sprintf(" from %s %s: %d", e.Remote, e.Node, e.Status)
	if e.Code != "" {
		line += " " + e.Code
	}
	if e.Throttle != nil {
		line += fmt.Sprintf(" %+v", *e.Throttle)
	}
	if e.Detail != "" {
		line += " (" + e.Detail + ")"
	}
	return line
}

// Journal is safe for concurrent use. Make one with [New].
type Journal struct {
	now   func() time.Time
	limit int

	mu      sync.Mutex // protects all following fields
	seq     uint64
	entries []Entry
	counts  map[Count]int // of all that was ever recorded; N is 0 in the keys
	changed chan struct{} // closed and replaced by each Record
}

// New returns an empty journal that keeps the last limit entries
// ([DefaultLimit] if 0).
func New(limit int, now func() time.Time) *Journal {
	if limit <= 0 {
		limit = DefaultLimit
	}
	return &Journal{now: now, limit: limit, counts: map[Count]int{}, changed: make(chan struct{})}
}

// Record appends e with the next sequence number, which begins at 1, and the
// present time, and wakes all waiters.
func (j *Journal) Record(e Entry) Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	j.counts[countOf(e)]++
	e.Seq, e.Time = j.seq, j.now()
	if len(j.entries) == j.limit {
		j.entries = slices.Delete(j.entries, 0, max(1, j.limit/10))
	}
	j.entries = append(j.entries, e)
	close(j.changed)
	j.changed = make(chan struct{})
	return e
}

// Since returns the kept entries whose sequence number is above seq, oldest
// first: Since(0) is all of them.
func (j *Journal) Since(seq uint64) []Entry {
	entries, _ := j.since(seq)
	return entries
}

// Unexpected returns the kept entries that are marked as such.
func (j *Journal) Unexpected() []Entry {
	return slices.DeleteFunc(j.Since(0), func(e Entry) bool { return !e.Unexpected })
}

// Wait returns the first kept or future entry that match accepts. It blocks
// until there is one or ctx is done.
func (j *Journal) Wait(ctx context.Context, match func(Entry) bool) (Entry, error) {
	return j.WaitAfter(ctx, 0, match)
}

// WaitAfter is [Journal.Wait] for entries whose sequence number is above seq.
func (j *Journal) WaitAfter(ctx context.Context, seq uint64, match func(Entry) bool) (Entry, error) {
	for {
		entries, changed := j.since(seq)
		for _, e := range entries {
			if match(e) {
				return e, nil
			}
			seq = e.Seq
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Entry{}, fmt.Errorf("waiting for a journal entry above %d: %w", seq, context.Cause(ctx))
		}
	}
}

func (j *Journal) since(seq uint64) ([]Entry, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	from, _ := slices.BinarySearchFunc(j.entries, seq+1, func(e Entry, want uint64) int {
		return cmp.Compare(e.Seq, want)
	})
	return slices.Clone(j.entries[from:]), j.changed
}
