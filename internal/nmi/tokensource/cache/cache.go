// Package cache keeps tokens: a request is answered from here while there is an
// answer that holds, and upstream is asked once for any number of pods.
//
// Tokens are replaced ahead of their end while a pod lives that used them, so
// that an upstream that is away for hours is not noticed. Room is bounded, and a
// pod that fills it loses its own. The package must not decide who may have a
// token, nor ask upstream past the budget.
package cache

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/budget"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Result says how the cache answered, or what it did unasked; the set is closed
// and labels a metric.
type Result string

// The results of the cache.
const (
	// Hit: a token was there.
	Hit Result = "hit"
	// Miss: upstream was asked.
	Miss Result = "miss"
	// Coalesced: upstream was being asked already.
	Coalesced Result = "coalesced"
	// Stale: upstream failed or was slow, and a token near its end was still
	// good.
	Stale Result = "stale"
	// Bypassed: upstream was asked although a token was there, because the pod
	// wanted that.
	Bypassed Result = "bypassed"
	// Remembered: a failure of a moment ago was the answer.
	Remembered Result = "remembered"
	// Limited: there was no turn for the request.
	Limited Result = "limited"
	// Refreshed and RefreshFailed: a token was to be replaced ahead of its end.
	Refreshed     Result = "refreshed"
	RefreshFailed Result = "refresh_failed"
)

// Pods knows which pods of this node still run.
type Pods interface {
	Alive(pod identity.Key, uid types.UID) bool
}

// Options configure a [Cache]. Zero values stand for the defaults.
type Options struct {
	// Source is asked for what is not here.
	Source tokensource.Source
	// Share is the part of a budget that pays for an identity's requests.
	Share func(identity.Identity) *budget.Share
	// Pods tells whose tokens are replaced ahead of their end; nil takes every
	// pod for alive.
	Pods Pods
	// Patience is how long a request waits for upstream before it is told to come
	// back; 5 seconds. The call goes on meanwhile.
	Patience time.Duration
	// Grace is how long it waits while it holds a token within Margin; 1 second.
	Grace time.Duration
	// Margin is how long before its end a token counts as old; 5 minutes.
	Margin time.Duration
	// Timeout bounds one upstream call; 25 seconds.
	Timeout time.Duration
	// Size bounds how much is kept, in tokens and failures; 4096.
	Size int
	// Failures bounds how many failures are remembered of one pod; 32.
	Failures int
	// Observe is told every result; nil tells nobody.
	Observe func(Result)
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{{&o.Patience, 5 * time.Second}, {&o.Grace, time.Second}, {&o.Margin, 5 * time.Minute}, {&o.Timeout, 25 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	if o.Size == 0 {
		o.Size = 4096
	}
	if o.Failures == 0 {
		o.Failures = 32
	}
	if o.Pods == nil {
		o.Pods = everyPod{}
	}
	if o.Observe == nil {
		o.Observe = func(Result) {}
	}
	return o
}

type everyPod struct{}

func (everyPod) Alive(identity.Key, types.UID) bool { return true }

// Cache is safe for concurrent use. Use [New]; [Cache.Run] replaces tokens ahead
// of their end.
type Cache struct {
	options Options

	mu      sync.Mutex // protects all following fields, entries, accounts and calls
	entries map[tokensource.Request]*entry
	// accounts hold what each pod's requests keep here; none is empty.
	accounts map[types.UID]*account
	// kept is how many entries are on accounts.
	kept int
	due  due
}

// New returns an empty cache.
func New(o Options) *Cache {
	return &Cache{options: o.withDefaults(), entries: map[tokensource.Request]*entry{}, accounts: map[types.UID]*account{}}
}

// Token returns a token with life left in it. What takes longer than a few
// seconds is refused for now, with a time to come back: the call to upstream goes
// on, and its answer will be here. When ctx ends, only this request does.
func (c *Cache) Token(ctx context.Context, ask tokensource.Ask) (imds.Token, error) {
	begun := c.begin(ctx, ask)
	if begun.call == nil {
		c.options.Observe(begun.result)
		return begun.token, begun.err
	}
	defer c.leave(begun.call)
	fresh, err := begun.call.wait(ctx, begun.patience)
	switch {
	case err == nil:
		c.options.Observe(begun.result)
		return fresh, nil
	case begun.token.Value() != "":
		// Whatever upstream says now: what it gave holds until its end.
		c.options.Observe(Stale)
		return begun.token, nil
	case refusal.Of(err).Reason == v1.ReasonLimited:
		begun.result = Limited
	}
	c.options.Observe(begun.result)
	return imds.Token{}, err
}

// begun is an answer, if there is no call, or the call to wait for and the token
// that there is meanwhile.
type begun struct {
	token    imds.Token
	err      error
	result   Result
	call     *call
	patience time.Duration
}

func (c *Cache) begin(ctx context.Context, ask tokensource.Ask) begun {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	key := ask.Canonical()
	e := c.entries[key]
	if e == nil {
		e = &entry{key: key}
	}
	c.touch(e, ask, now)
	held := e.good(now)
	switch {
	case held && ask.Fresh && e.mayBypass(now):
		return c.ask(ctx, e, ask, begun{token: e.token, result: Bypassed, patience: c.options.Patience})
	case held && (now.Before(e.old) || now.Before(e.retry)):
		return begun{token: e.token, result: Hit}
	case held:
		return c.ask(ctx, e, ask, begun{token: e.token, result: Miss, patience: c.options.Grace})
	case e.call == nil && now.Before(e.failedUntil):
		return begun{result: Remembered, err: e.remembered(now)}
	}
	return c.ask(ctx, e, ask, begun{result: Miss, patience: c.options.Patience})
}

// ask joins the call that is under way for an entry, or starts one.
func (c *Cache) ask(ctx context.Context, e *entry, ask tokensource.Ask, out begun) begun {
	out.call = e.call
	if e.call != nil {
		out.result = Coalesced
		if ticket := e.call.ticket; ticket != nil {
			ticket.Join(string(ask.UID))
		}
	} else if out.call, out.err = c.start(context.WithoutCancel(ctx), e, ask); out.err != nil {
		out.result = Limited
		if out.token.Value() != "" {
			out.result, out.err = Stale, nil
		}
		return out
	}
	out.call.waiters++
	return out
}

func (c *Cache) leave(pending *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pending.waiters--
}
