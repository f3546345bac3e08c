package cache

import (
	"context"
	"fmt"
	"net/http/httptrace"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/budget"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// call is one question to upstream, on behalf of all who wait for its answer. It
// goes on when they have left: one of them will be back.
type call struct {
	cache *Cache
	entry *entry
	// request is as the first of them spelled it, owner its pod.
	request tokensource.Request
	owner   types.UID
	// ctx is that of the first of them, without its end.
	ctx context.Context
	// ahead says that nobody waits: a token is replaced ahead of its end.
	ahead bool

	// waiters, ticket and attempt are protected by the cache's lock.
	waiters int
	ticket  *budget.Ticket
	attempt int

	// token and err are set when done is closed.
	done  chan struct{}
	token imds.Token
	err   error
}

// start begins a call for an entry that has none, and fails if there is no room
// for one. Only then a new entry is known. The cache's lock is held.
func (c *Cache) start(ctx context.Context, e *entry, ask tokensource.Ask) (*call, error) {
	pending := &call{cache: c, entry: e, request: ask.Request, owner: ask.UID, ctx: ctx, done: make(chan struct{})}
	if err := pending.enqueue(); err != nil {
		return nil, err
	}
	c.entries[e.key] = e
	if ask.Fresh {
		e.bypassed = time.Now()
	}
	e.call = pending
	return pending, nil
}

// enqueue asks for a turn. The cache's lock is held.
func (p *call) enqueue() (err error) {
	p.ticket, err = p.cache.options.Share(p.request.Identity).Enqueue(string(p.owner), p)
	return err
}

// wait returns the call's answer, or what to tell one who waited long enough.
func (p *call) wait(ctx context.Context, patience time.Duration) (imds.Token, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.token, p.err
	case <-timer.C:
	case <-ctx.Done():
	}
	if after, waits := p.turn(); waits {
		out := refusal.New(v1.ReasonLimited, "the node may send its upstream few requests a second, and this one waits for its turn: try again")
		out.After = max(after, time.Second)
		return imds.Token{}, out
	}
	return imds.Token{}, &refusal.Error{
		Reason: v1.ReasonUpstreamUnavailable, Message: "no token came in time: try again", After: time.Second, Err: context.Cause(ctx),
	}
}

// turn returns about how long the call still waits for its turn; false if it does
// not.
func (p *call) turn() (time.Duration, bool) {
	p.cache.mu.Lock()
	ticket := p.ticket
	p.cache.mu.Unlock()
	if ticket == nil {
		return 0, false
	}
	return ticket.After()
}

// Start asks upstream. It is the call's turn.
func (p *call) Start() {
	p.cache.mu.Lock()
	ticket := p.ticket
	p.cache.mu.Unlock()
	token, err := p.ask(ticket)
	outcome := budget.Outcome{}
	if err != nil && tokensource.ClassOf(err) == tokensource.Throttled {
		outcome = budget.Outcome{Throttled: true, After: refusal.Of(err).After}
	}
	ticket.Done(outcome)
	if err == nil || !p.again(err) {
		p.finish(token, err)
	}
}

// Dropped ends the call without a turn.
func (p *call) Dropped(why error) { p.finish(imds.Token{}, why) }

func (p *call) ask(ticket *budget.Ticket) (token imds.Token, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cache.options.Timeout)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { ticket.Sent() }})
	defer func() {
		// Those who wait are told, and the agent goes on serving others.
		if r := recover(); r != nil {
			err = refusal.Of(fmt.Errorf("getting a token for %s: panic: %v", p.request.Identity.Key, r))
		}
	}()
	token, err = p.cache.options.Source.Token(ctx, p.request)
	if err != nil {
		return imds.Token{}, err
	}
	return token, nil
}

// again asks once more after a failure that goes by, while somebody waits: at
// once if upstream throttles, as the budget does the waiting then, and later and
// later if it is being updated.
func (p *call) again(err error) bool {
	delay, worth := againAfter(err, p.attempt)
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	if !worth || p.waiters == 0 {
		return false
	}
	p.attempt++
	if delay == 0 {
		return p.enqueue() == nil
	}
	p.ticket = nil
	time.AfterFunc(delay, func() {
		p.cache.mu.Lock()
		refused := p.enqueue()
		p.cache.mu.Unlock()
		if refused != nil {
			p.finish(imds.Token{}, err)
		}
	})
	return true
}

// maxAttempts is how often SDKs ask again, too.
const maxAttempts = 3

func againAfter(err error, attempt int) (time.Duration, bool) {
	if attempt >= maxAttempts {
		return 0, false
	}
	switch {
	case tokensource.ClassOf(err) == tokensource.Throttled:
		return 0, true
	case tokensource.Updating(err):
		return time.Second << attempt, true
	}
	return 0, false
}

// finish tells all who wait, and keeps the answer.
func (p *call) finish(token imds.Token, err error) {
	p.token, p.err = token, err
	p.cache.mu.Lock()
	p.cache.keep(p, token, err)
	p.cache.mu.Unlock()
	close(p.done)
	switch {
	case p.ahead && err == nil:
		p.cache.options.Observe(Refreshed)
	case p.ahead:
		p.cache.options.Observe(RefreshFailed)
	}
}
