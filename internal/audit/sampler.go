package audit

import (
	"net/netip"
	"sync"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

const (
	// repeatAfter is how long a caller that meets a limit is worth no more lines.
	repeatAfter = time.Minute
	// maxSampled bounds how many callers are remembered.
	maxSampled = 1024
)

// Sampler leaves out the repetitions of a caller that asks more than it may:
// what is refused for nothing else must not fill the log. They are counted by
// metrics all the same. Use [NewSampler].
type Sampler struct {
	mu   sync.Mutex // protects last
	last map[netip.Addr]time.Time
}

// NewSampler returns a sampler that has seen nothing.
func NewSampler() *Sampler { return &Sampler{last: map[netip.Addr]time.Time{}} }

// Worth reports whether a record is worth a line.
func (s *Sampler) Worth(record *Record) bool {
	if record.Reason != v1.ReasonLimited {
		return true
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.last[record.Remote]) < repeatAfter {
		return false
	}
	if len(s.last) >= maxSampled {
		clear(s.last) // at worst, something is said twice
	}
	s.last[record.Remote] = now
	return true
}
