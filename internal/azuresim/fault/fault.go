// Package fault holds the failures that the simulator was told to play, as
// data: what to match, how often, what to answer.
//
// It is pure but for its own list. It must not know what a surface would have
// answered, or write any HTTP itself.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

// Duration is how a fault writes a time.
type Duration = timing.Duration

// Fault is one rule. The first rule that matches a request and has plays left
// is played.
type Fault struct {
	ID     string `json:"id,omitempty"` // given by [Set.Add]
	Match  Match  `json:"match"`
	Times  int    `json:"times,omitempty"`  // 0: until removed
	Played int    `json:"played,omitempty"` // so far; set by [Set.Take]
	// For is how long the fault lasts from when it was added, of the simulator's
	// own time; 0: until removed.
	For      Duration `json:"for,omitempty"`
	Response Response `json:"response"`

	until time.Time // zero: until removed
}

// Match selects requests. Empty fields match everything.
type Match struct {
	Surface string `json:"surface,omitempty"` // arm, imds, entra, keyvault
	Method  string `json:"method,omitempty"`
	Node    string `json:"node,omitempty"`
	// Path is the request's path (an ARM ID, for ARM), compared without case;
	// each * stands for any run of characters, slashes included.
	Path string `json:"path,omitempty"`
}

// Response is what a matched request meets. Delay comes first. Then the
// connection is dropped, or an error of Status is answered in the surface's own
// dialect, or, if neither is set, the request is served as usual.
type Response struct {
	Delay   Duration          `json:"delay,omitempty"`
	Drop    bool              `json:"drop,omitempty"`
	Status  int               `json:"status,omitempty"` // 400-599
	Code    string            `json:"code,omitempty"`
	Message string            `json:"message,omitempty"`
	Headers map[string]string `json:"headers,omitempty"` // such as Retry-After
	// FailOperation lets an ARM PATCH be accepted, and its asynchronous
	// operation end as Failed with Code and Message.
	FailOperation bool `json:"failOperation,omitempty"`
	// LoseOperation lets ARM forget the operation's URL, which answers 404, while
	// the operation goes on.
	LoseOperation bool `json:"loseOperation,omitempty"`
	// OperationLatency is how long the operation runs, of the simulator's own time.
	OperationLatency Duration `json:"operationLatency,omitempty"`
	// LoseAnswer serves the request and drops the connection before the answer.
	LoseAnswer bool `json:"loseAnswer,omitempty"`
}

// ofOperation reports whether the response says what becomes of an operation.
func (r Response) ofOperation() bool {
	return r.FailOperation || r.LoseOperation || r.OperationLatency != 0
}

// Request is what a fault is matched against.
type Request struct {
	Surface, Method, Path, Node string
}

// Validate says what is wrong with a fault.
func (f Fault) Validate() error {
	if f.Times < 0 || f.For < 0 {
		return errors.New("times and for must not be negative")
	}
	if f.Response.ofOperation() && f.Match.Surface != "arm" {
		return errors.New("failOperation, loseOperation and operationLatency need match.surface: arm")
	}
	return f.Response.validate()
}

func (r Response) validate() error {
	if r.Delay < 0 || r.OperationLatency < 0 {
		return errors.New("delay and operationLatency must not be negative")
	}
	if r.Status != 0 && (r.Status < 400 || r.Status > 599) {
		return fmt.Errorf("status %d is not an error: use 400 to 599", r.Status)
	}
	effects := r.effects()
	if effects > 1 {
		return errors.New("choose one of drop, status, and what becomes of the operation and of its answer")
	}
	if effects == 0 && r.Delay == 0 {
		return errors.New("response does nothing: set delay, drop, status, loseAnswer, failOperation, loseOperation or operationLatency")
	}
	return nil
}

// effects counts what the response does beside the delay.
func (r Response) effects() int {
	n := 0
	for _, set := range []bool{r.Drop, r.Status != 0, r.ofOperation() || r.LoseAnswer} {
		if set {
			n++
		}
	}
	return n
}

// Updating is a node's metadata service that is being updated: for that long it
// answers 404, or 410 as it does when it will be back within 70 s.
func Updating(node string, status int, d time.Duration) Fault {
	return Fault{Match: Match{Surface: "imds", Node: node}, For: Duration(d), Response: Response{Status: status}}
}

// Set is the list of faults. Its zero value is empty and ready; it is safe for
// concurrent use.
type Set struct {
	// Now is the clock; nil: the real one. Compress is how long a time of the
	// simulator's own takes; nil: as long.
	Now      func() time.Time
	Compress func(time.Duration) time.Duration

	mu     sync.Mutex // protects all following fields
	next   int
	faults []Fault
}

// Add appends f under a new ID.
func (s *Set) Add(f Fault) (Fault, error) {
	if err := f.Validate(); err != nil {
		return Fault{}, fmt.Errorf("adding fault: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	f.ID, f.Played, f.until = strconv.Itoa(s.next), 0, time.Time{}
	if f.For > 0 {
		f.until = s.now().Add(s.compress(time.Duration(f.For)))
	}
	s.faults = append(s.faults, f)
	return f, nil
}

// List returns all faults, with how often each was played.
func (s *Set) List() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}

// Remove ends a fault; false if there is none of that ID.
func (s *Set) Remove(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.faults)
	s.faults = slices.DeleteFunc(s.faults, func(f Fault) bool { return f.ID == id })
	return len(s.faults) < before
}

// Clear ends all faults.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

func (s *Set) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *Set) compress(d time.Duration) time.Duration {
	if s.Compress == nil {
		return d
	}
	return s.Compress(d)
}

func (f *Fault) isActive(now func() time.Time) bool {
	return (f.Times == 0 || f.Played < f.Times) && (f.until.IsZero() || now().Before(f.until))
}

// Take counts and returns the first fault that r meets, or false.
func (s *Set) Take(r Request) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.faults {
		f := &s.faults[i]
		if f.isActive(s.now) && f.Match.matches(r) {
			f.Played++
			return *f, true
		}
	}
	return Fault{}, false
}

func (m Match) matches(r Request) bool {
	return (m.Surface == "" || m.Surface == r.Surface) &&
		(m.Method == "" || strings.EqualFold(m.Method, r.Method)) &&
		(m.Node == "" || m.Node == r.Node) &&
		(m.Path == "" || glob(strings.ToLower(m.Path), strings.ToLower(r.Path)))
}

// glob matches s against a pattern in which * stands for any run of characters.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(s, part)
		if at < 0 {
			return false
		}
		s = s[at+len(part):]
	}
	return strings.HasSuffix(s, last)
}
