package tokensource

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Result says how the cache answered; the set is closed and labels a metric.
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
)

// CacheOptions configure a [Cache]. Zero values stand for the defaults.
type CacheOptions struct {
	// Margin is how long before its end a token is replaced; 5 minutes. A token
	// that was short-lived when it came is replaced after three quarters of its
	// life if that is later.
	Margin time.Duration
	// Grace is how long a request waits for upstream while it holds a token that
	// is within the margin; 1 second.
	Grace time.Duration
	// Timeout bounds one upstream call; 25 seconds.
	Timeout time.Duration
	// Size bounds the number of tokens kept; 4096.
	Size int
	// Now is the clock; nil is the real one.
	Now func() time.Time
	// Observe is told the result of every request; nil tells nobody.
	Observe func(Result)
}

func (o CacheOptions) withDefaults() CacheOptions {
	if o.Margin == 0 {
		o.Margin = 5 * time.Minute
	}
	if o.Grace == 0 {
		o.Grace = time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 25 * time.Second
	}
	if o.Size == 0 {
		o.Size = 4096
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Observe == nil {
		o.Observe = func(Result) {}
	}
	return o
}

// minLife is how much life a token must have left to be handed out at all:
// it has a way to go before it is checked.
const minLife = 10 * time.Second

// Cache keeps tokens of a source until shortly before they end. For equal
// requests there is one upstream call at a time, however many ask, and it goes
// on when those who asked have left: the next one will want its answer. Failures
// are not kept. While upstream is down, a token that is still good is served.
type Cache struct {
	source  Source
	options CacheOptions

	mu      sync.Mutex // protects all following fields
	entries map[Request]*entry
}

// entry is a token, a call under way, or both.
type entry struct {
	token   imds.Token
	replace time.Time // when to ask again; the zero time without a token
	call    *call
}

// call is one request upstream. token and err are set when done is closed.
type call struct {
	done  chan struct{}
	token imds.Token
	err   error
}

// NewCache returns an empty cache in front of a source.
func NewCache(source Source, options CacheOptions) *Cache {
	return &Cache{source: source, options: options.withDefaults(), entries: map[Request]*entry{}}
}

// Token returns a token with life left in it. If ctx ends first, the refusal is
// UpstreamUnavailable, as from upstream itself.
func (c *Cache) Token(ctx context.Context, request Request) (imds.Token, error) {
	token, pending, result := c.begin(ctx, request)
	if pending == nil {
		c.options.Observe(result)
		return token, nil
	}
	if !c.good(token) {
		c.options.Observe(result)
		return pending.wait(ctx)
	}
	patience, cancel := context.WithTimeout(ctx, c.options.Grace)
	defer cancel()
	fresh, err := pending.wait(patience)
	if err == nil || !passing(err) {
		c.options.Observe(result)
		return fresh, err
	}
	c.options.Observe(Stale)
	return token, nil
}

// begin returns a token to serve, or the call to wait for and what is there in
// the meantime.
func (c *Cache) begin(ctx context.Context, request Request) (imds.Token, *call, Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.entries[request]
	if known == nil {
		c.evict()
		known = &entry{}
		c.entries[request] = known
	}
	if c.options.Now().Before(known.replace) {
		return known.token, nil, Hit
	}
	if known.call != nil {
		return known.token, known.call, Coalesced
	}
	known.call = &call{done: make(chan struct{})}
	go c.fetch(context.WithoutCancel(ctx), request, known.call)
	return known.token, known.call, Miss
}

func (c *Cache) fetch(ctx context.Context, request Request, pending *call) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	defer c.finish(request, pending)
	defer func() {
		// Those who wait are told, and the agent goes on serving others.
		if r := recover(); r != nil {
			pending.err = refusal.Of(fmt.Errorf("getting a token for %s: panic: %v", request.Identity.Key, r))
		}
	}()
	pending.token, pending.err = c.source.Token(ctx, request)
}

func (c *Cache) finish(request Request, pending *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(pending.done)
	known := c.entries[request]
	if known == nil || known.call != pending {
		return
	}
	known.call = nil
	switch now := c.options.Now(); {
	case pending.err == nil:
		known.token = pending.token
		known.replace = replaceAt(pending.token.ExpiresOn, now, c.options.Margin)
	case !passing(pending.err) || !c.good(known.token):
		// A token that upstream no longer gives is not served from here either.
		delete(c.entries, request)
	}
}

func replaceAt(expires, now time.Time, margin time.Duration) time.Time {
	return expires.Add(-min(margin, expires.Sub(now)/4))
}

func (c *Cache) good(token imds.Token) bool {
	return token.Value() != "" && c.options.Now().Add(minLife).Before(token.ExpiresOn)
}

// evict makes room for one more entry: tokens at their end go first, calls under
// way never.
func (c *Cache) evict() {
	if len(c.entries) < c.options.Size {
		return
	}
	var first Request
	var oldest time.Time
	now := c.options.Now()
	for request, known := range c.entries {
		switch ends := known.token.ExpiresOn; {
		case known.call != nil:
		case !now.Before(ends):
			delete(c.entries, request)
		case oldest.IsZero() || ends.Before(oldest):
			first, oldest = request, ends
		}
	}
	if len(c.entries) >= c.options.Size && !oldest.IsZero() {
		delete(c.entries, first)
	}
}

func (c *call) wait(ctx context.Context) (imds.Token, error) {
	select {
	case <-c.done:
		return c.token, c.err
	case <-ctx.Done():
		return imds.Token{}, &refusal.Error{
			Reason: v1.ReasonUpstreamUnavailable, Message: "no token came in time: try again", Err: ctx.Err(),
		}
	}
}

// passing reports whether an error says nothing against the identity: upstream
// is down, busy, or asked to wait.
func passing(err error) bool {
	switch refusal.Of(err).Reason {
	case v1.ReasonUpstreamUnavailable, v1.ReasonUpstreamUpdating, v1.ReasonUpstreamThrottled, v1.ReasonNotReady, v1.ReasonInternalError:
		return true
	}
	return false
}
