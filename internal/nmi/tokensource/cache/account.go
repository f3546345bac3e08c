package cache

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
)

// account is what one pod's requests keep in the cache. Room is taken from the
// fullest account, and within it from what was not used for longest, so that a
// pod that asks for more and more loses its own. An entry that several pods use
// is on the account of one that has few. Calls under way are on none: the
// budget's queue bounds those.
type account struct {
	uid     types.UID
	entries map[*entry]struct{}
}

// charge puts an entry on the account of a pod.
func (c *Cache) charge(e *entry, uid types.UID) {
	c.discharge(e)
	a := c.accounts[uid]
	if a == nil {
		a = &account{uid: uid, entries: map[*entry]struct{}{}}
		c.accounts[uid] = a
	}
	a.entries[e] = struct{}{}
	e.account = a
	c.kept++
}

func (c *Cache) discharge(e *entry) {
	if e.account == nil {
		return
	}
	c.kept--
	delete(e.account.entries, e)
	if len(e.account.entries) == 0 {
		delete(c.accounts, e.account.uid)
	}
	e.account = nil
}

func (c *Cache) remove(e *entry) {
	delete(c.entries, e.key)
	c.due.unschedule(e)
	c.discharge(e)
}

// touch notes that a pod uses an entry. If the pod has less on its account than
// the one that pays, it pays from now on; it must have less by two, so that no
// entry goes to and fro.
func (c *Cache) touch(e *entry, ask tokensource.Ask, now time.Time) {
	e.use(user{ask.Pod, ask.UID}, now)
	if e.account == nil || e.account.uid == ask.UID {
		return
	}
	mine := 0
	if a := c.accounts[ask.UID]; a != nil {
		mine = len(a.entries)
	}
	if mine+1 < len(e.account.entries) {
		c.charge(e, ask.UID)
	}
}

// settle forgets an entry that holds nothing. Another one is on the account of a
// pod, and its failures, and all together, are bounded.
func (c *Cache) settle(e *entry, uid types.UID) {
	if !e.holds(time.Now()) {
		c.remove(e)
		return
	}
	if e.account == nil {
		if c.kept >= c.options.Size {
			c.makeRoom()
		}
		c.charge(e, uid)
	}
	failures := 0
	for other := range e.account.entries {
		failures += other.failed()
	}
	if failures > c.options.Failures {
		c.removeOldest(e.account)
	}
}

func (e *entry) holds(now time.Time) bool {
	return e.call != nil || e.good(now) || e.failure != nil && now.Before(e.failedUntil)
}

// makeRoom forgets one entry of the fullest account.
func (c *Cache) makeRoom() {
	var fullest *account
	for _, a := range c.accounts {
		if fullest == nil || len(a.entries) > len(fullest.entries) {
			fullest = a
		}
	}
	if fullest != nil {
		c.removeOldest(fullest)
	}
}

// removeOldest forgets the entry of an account that was not used for longest,
// failures before tokens. Calls under way stay.
func (c *Cache) removeOldest(a *account) {
	var out *entry
	for e := range a.entries {
		if e.call == nil && (out == nil || e.before(out)) {
			out = e
		}
	}
	if out != nil {
		c.remove(out)
	}
}

func (e *entry) before(other *entry) bool {
	if e.failed() != other.failed() {
		return e.failed() > other.failed()
	}
	return e.used.Before(other.used)
}

func (e *entry) failed() int {
	if e.failure == nil {
		return 0
	}
	return 1
}
