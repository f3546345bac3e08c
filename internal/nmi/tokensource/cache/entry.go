package cache

import (
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

const (
	// minLife is how much life a token must have left to be handed out at all: it
	// has a way to go before it is checked.
	minLife = 10 * time.Second
	// bypassEvery is how often one token is fetched anew because a pod wants to
	// bypass the cache.
	bypassEvery = time.Minute
	// maxUsers bounds how many pods are remembered to have used an entry, the
	// last ones. Were all of them gone, the next pod would find no fresh token,
	// and wait for one.
	maxUsers = 16
)

// entry is a token, a failure, a call under way, or several of them.
type entry struct {
	key tokensource.Request
	// account pays for it; nil as long as there was no answer.
	account *account
	// users are the last pods that asked, each once.
	users []user
	used  time.Time

	token imds.Token
	// old is when requests begin to wait for a new one, retry the earliest time to
	// ask again after a failure.
	old, retry time.Time
	bypassed   time.Time

	failure     *refusal.Error
	failedUntil time.Time

	call *call

	// due is when the entry is to be looked at, place where it stands in that
	// order, counted from one; zero is nowhere.
	due   time.Time
	place int
}

// user is a pod that asked.
type user struct {
	pod identity.Key
	uid types.UID
}

func (e *entry) good(now time.Time) bool {
	return e.token.Value() != "" && now.Add(minLife).Before(e.token.ExpiresOn)
}

// mayBypass also lets requests join a call that is under way.
func (e *entry) mayBypass(now time.Time) bool {
	return e.call != nil && e.call.request.Fresh || e.call == nil && now.Sub(e.bypassed) >= bypassEvery
}

// remembered returns the failure with the time until upstream is asked again.
func (e *entry) remembered(now time.Time) *refusal.Error {
	out := *e.failure
	if out.After > 0 {
		out.After = e.failedUntil.Sub(now)
	}
	return &out
}

// use remembers who used the entry last.
func (e *entry) use(u user, now time.Time) {
	e.used = now
	for _, known := range e.users {
		if known.uid == u.uid {
			return
		}
	}
	if len(e.users) < maxUsers {
		e.users = append(e.users, u)
		return
	}
	copy(e.users, e.users[1:])
	e.users[maxUsers-1] = u
}

// keep takes in the answer to a call. A failure never costs a token that is still
// good.
func (c *Cache) keep(p *call, token imds.Token, err error) {
	e, now := p.entry, time.Now()
	e.call = nil
	switch {
	case err == nil:
		c.keepToken(e, token, now)
	case e.good(now):
		c.postpone(e, now)
	default:
		refused := refusal.Of(err)
		e.token, e.failure, e.failedUntil = imds.Token{}, nil, time.Time{}
		if life := tokensource.ClassOf(err).Life(refused.After); life > 0 {
			e.failure, e.failedUntil = refused, now.Add(life)
			c.due.schedule(e, e.failedUntil)
		}
	}
	c.settle(e, p.owner)
}

func (c *Cache) keepToken(e *entry, token imds.Token, now time.Time) {
	life := token.ExpiresOn.Sub(now)
	e.token, e.failure, e.failedUntil = token.Encoded(), nil, time.Time{}
	e.old, e.retry = token.ExpiresOn.Add(-min(c.options.Margin, life/4)), time.Time{}
	c.due.schedule(e, now.Add(replaceAfter(life)))
}

// postpone leaves a good token alone for a while after it could not be replaced.
func (c *Cache) postpone(e *entry, now time.Time) {
	e.retry = now.Add(retryAfter(e.token.ExpiresOn.Sub(now)))
	c.due.schedule(e, e.retry)
}

// replaceAfter returns after how much of its life a token is to be replaced: two
// fifths to three quarters, so that what was fetched in one minute is replaced
// over hours, and an outage finds hours left in tokens of a day.
func replaceAfter(life time.Duration) time.Duration { return 2*life/5 + jitter(7*life/20) }

// retryAfter returns how long to wait after a replacement failed: an eighth to a
// quarter of the life that is left. Tokens with hours left can wait, so that an
// upstream that is back is not asked for all at once.
func retryAfter(left time.Duration) time.Duration {
	return left/8 + jitter(left/8)
}

// jitter returns a random time up to most.
func jitter(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return rand.N(most) //nolint:gosec // spreads load, keeps no secret
}
