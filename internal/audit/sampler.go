package audit

import (
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

const (
	// limitedEvery is how long a caller that meets a limit is worth no more lines.
	limitedEvery = time.Minute
	// maxSampled bounds how many decisions are remembered.
	maxSampled = 4096
)

// Sampler leaves out lines that say again what was just said: a pod got the same
// token as a moment ago, or asked more than it may. Metrics count them all the
// same. Use [NewSampler].
type Sampler struct {
	every time.Duration

	mu   sync.Mutex // protects last
	last map[said]time.Time
}

// said is what makes two decisions the same.
type said struct {
	reason   v1.Reason
	remote   netip.Addr
	uid      types.UID
	identity identity.Key
	resource string
}

// NewSampler returns a sampler that has seen nothing. Tokens that a pod was
// issued before are worth one line in every; zero makes each worth one.
func NewSampler(every time.Duration) *Sampler {
	return &Sampler{every: every, last: map[said]time.Time{}}
}

// Worth reports whether a record is worth a line.
func (s *Sampler) Worth(record *Record) bool {
	this, every := said{reason: record.Reason, remote: record.Remote}, limitedEvery
	switch record.Reason {
	case v1.ReasonLimited:
	case v1.ReasonIssued:
		this.uid, this.identity, this.resource, every = record.UID, record.Identity, record.Resource, s.every
	default:
		return true
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last[this]; ok && now.Sub(last) < every {
		return false
	}
	if len(s.last) >= maxSampled {
		clear(s.last) // at worst, something is said twice
	}
	s.last[this] = now
	return true
}
