package imds

import (
	"maps"
	"sync"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
)

// maxCached bounds the cache.
const maxCached = 4096

// cacheKey is what the platform keeps a token by.
type cacheKey struct {
	node, principal, resource string
}

// tokenCache is the platform's: what a token allows, and who it is for, is as it
// was when it was made. It is safe for concurrent use.
type tokenCache struct {
	now func() time.Time

	mu     sync.Mutex // protects all following fields
	tokens map[cacheKey]token.Token
}

func newTokenCache(now func() time.Time) *tokenCache {
	return &tokenCache{now: now, tokens: map[cacheKey]token.Token{}}
}

// get returns the kept token with what is left of its life, or a fresh one if
// there is none, if less than a tenth of its life is left, or if the caller wants
// one.
func (c *tokenCache) get(key cacheKey, bypass bool, mint func() (token.Token, error)) (token.Token, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if kept, ok := c.tokens[key]; ok && !bypass && !isOld(kept, now) {
		kept.ExpiresIn = kept.ExpiresOn.Sub(now).Truncate(time.Second)
		return kept, nil
	}
	fresh, err := mint()
	if err != nil {
		return token.Token{}, err
	}
	if len(c.tokens) >= maxCached {
		maps.DeleteFunc(c.tokens, func(_ cacheKey, t token.Token) bool { return isOld(t, now) })
	}
	if len(c.tokens) < maxCached {
		c.tokens[key] = fresh
	}
	return fresh, nil
}

func isOld(t token.Token, now time.Time) bool {
	return t.ExpiresOn.Sub(now) < t.ExpiresIn/10
}
