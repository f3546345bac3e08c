package budget

import (
	"context"
	"slices"
	"time"
)

// Share is a part of a budget. Use [Budget.Share].
type Share struct {
	budget *Budget
	weight float64
	atOnce int

	running int
	// passed is the share's virtual time: the one that has got least for its
	// weight is next.
	passed float64
	queues map[string]*queue
	// turns are the owners with something waiting, the next one first.
	turns []*queue
}

// queue is what waits for one owner, oldest first.
type queue struct {
	share   *Share
	owner   string
	tickets []*Ticket
}

// Call is what waits in a budget. One of its methods is called, once, in a
// goroutine of its own.
type Call interface {
	// Start is called when it is the call's turn. Ticket.Done must follow.
	Start()
	// Dropped is called if the call will get no turn.
	Dropped(why error)
}

// Ticket is a call's place in the queue.
type Ticket struct {
	share *Share
	call  Call
	// queues are those that it waits in; none once it is settled.
	queues  []*queue
	until   time.Time
	started time.Time
	place   int // of its departure
}

// Enqueue gives a call its place among what its owner, a pod's UID, waits for.
// If there is no room, the error is a refusal that says when to try again.
func (s *Share) Enqueue(owner string, call Call) (*Ticket, error) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := 0
	if q := s.queues[owner]; q != nil {
		mine = len(q.tickets)
	}
	if !b.makeRoom(mine) {
		return nil, b.refuse("the queue is full", s.estimate(s.queues[owner], mine))
	}
	if len(s.turns) == 0 {
		// Who was away has saved up nothing.
		s.passed = max(s.passed, b.passed)
	}
	t := &Ticket{share: s, call: call}
	b.waiting++
	s.join(owner, t)
	b.dispatch()
	return t, nil
}

func (s *Share) join(owner string, t *Ticket) {
	t.until = time.Now().Add(keep)
	if slices.ContainsFunc(t.queues, func(q *queue) bool { return q.owner == owner }) {
		return
	}
	q := s.queues[owner]
	if q == nil {
		q = &queue{share: s, owner: owner}
		s.queues[owner] = q
		s.turns = append(s.turns, q)
	}
	q.tickets = append(q.tickets, t)
	t.queues = append(t.queues, q)
}

// Join lets another owner want the same call: it starts at the turn of either.
// Somebody who waits must have joined within the last 30 seconds.
func (t *Ticket) Join(owner string) {
	t.share.budget.mu.Lock()
	defer t.share.budget.mu.Unlock()
	if len(t.queues) > 0 {
		t.share.join(owner, t)
	}
}

// After returns about how long the call still waits for its turn, at most 20
// seconds, and false if it waits no more.
func (t *Ticket) After() (time.Duration, bool) {
	t.share.budget.mu.Lock()
	defer t.share.budget.mu.Unlock()
	return min(t.soonest(), maxAfter), len(t.queues) > 0
}

func (t *Ticket) soonest() time.Duration {
	var out time.Duration
	for i, q := range t.queues {
		if at := t.share.estimate(q, slices.Index(q.tickets, t)); i == 0 || at < out {
			out = at
		}
	}
	return out
}

// Sent notes that the call's request is written to the upstream's connection. It
// may be called after its Start, and lets those that wait go sooner.
func (t *Ticket) Sent() {
	b := t.share.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pace.sent(t.place, t.started, time.Now())
}

// Done gives back what the call held since its Start.
func (t *Ticket) Done(outcome Outcome) { t.share.budget.done(t, outcome) }

// first returns the next ticket and gives its owner the last turn.
func (s *Share) first() *Ticket {
	q := s.turns[0]
	s.turns = append(slices.Delete(s.turns, 0, 1), q)
	return q.tickets[0]
}

func (q *queue) remove(t *Ticket) {
	q.tickets = slices.DeleteFunc(q.tickets, func(other *Ticket) bool { return other == t })
	if len(q.tickets) > 0 {
		return
	}
	delete(q.share.queues, q.owner)
	q.share.turns = slices.DeleteFunc(q.share.turns, func(other *queue) bool { return other == q })
}

// lastAlone returns the last ticket that nobody else waits for, or nil.
func (q *queue) lastAlone() *Ticket {
	for _, t := range slices.Backward(q.tickets) {
		if len(t.queues) == 1 {
			return t
		}
	}
	return nil
}

// estimate returns how long a ticket waits that has mine others before it in its
// owner's queue, which may be nil.
func (s *Share) estimate(own *queue, mine int) time.Duration {
	ahead := mine + 1
	for _, q := range s.turns {
		if q != own {
			ahead += min(len(q.tickets), mine+1)
		}
	}
	total := 0.0
	for _, other := range s.budget.shares {
		if other == s || len(other.turns) > 0 {
			total += other.weight
		}
	}
	b := s.budget
	each := max(b.pace.each(), b.held/time.Duration(b.options.AtOnce))
	wait := time.Duration(float64(ahead) * float64(each) * total / s.weight)
	return wait + max(0, time.Until(b.pace.paused))
}

// Acquire waits for the owner's turn, and returns the ticket, whose Done must
// follow. If ctx ends first, the error is a refusal that says when to try again.
func (s *Share) Acquire(ctx context.Context, owner string) (*Ticket, error) {
	w := waiter{settled: make(chan error, 1)}
	t, err := s.Enqueue(owner, w)
	if err != nil {
		return nil, err
	}
	select {
	case err := <-w.settled:
		return t, err
	case <-ctx.Done():
	}
	if refused := t.cancel(); refused != nil {
		return nil, refused
	}
	// Its turn came at the same moment.
	return t, <-w.settled
}

// cancel takes a waiting ticket out; nil if it waits no more.
func (t *Ticket) cancel() error {
	b := t.share.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(t.queues) == 0 {
		return nil
	}
	after := t.soonest()
	b.settle(t)
	return b.refuse("its time was up", after)
}

// waiter is a Call that somebody waits for in place.
type waiter struct{ settled chan error }

// Start lets the one who waits go on.
func (w waiter) Start() { w.settled <- nil }

// Dropped tells the one who waits why.
func (w waiter) Dropped(why error) { w.settled <- why }
