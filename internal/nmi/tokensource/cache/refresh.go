package cache

import (
	"context"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
)

// lookEvery is how often the cache looks for what is due. Nothing depends on it
// to the second.
const lookEvery = 30 * time.Second

// Run replaces tokens ahead of their end, for pods that still run, and forgets
// what has ended, until ctx does.
func (c *Cache) Run(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (c *Cache) look(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for e := c.due.next(now); e != nil; e = c.due.next(now) {
		switch {
		case e.call != nil: // its end says what is next
		case !e.holds(now):
			c.remove(e)
		default:
			c.refresh(ctx, e, now)
		}
	}
}

// refresh asks for a token on behalf of a pod that used it and is alive. If there
// is none, the token is there for others to its end, and is not replaced unless
// one comes.
func (c *Cache) refresh(ctx context.Context, e *entry, now time.Time) {
	e.users = c.alive(e.users)
	if len(e.users) == 0 || !e.good(now) {
		c.due.schedule(e, now.Add(lookEvery))
		return
	}
	last := e.users[len(e.users)-1]
	// The key says all that the first one who asked did.
	pending, err := c.start(context.WithoutCancel(ctx), e, tokensource.Ask{Request: e.key, Pod: last.pod, UID: last.uid})
	if err != nil {
		c.postpone(e, now)
		return
	}
	pending.ahead = true
}

func (c *Cache) alive(users []user) []user {
	out := users[:0]
	for _, u := range users {
		if c.options.Pods.Alive(u.pod, u.uid) {
			out = append(out, u)
		}
	}
	return out
}
