package throttle

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limit is a token bucket of ARM's: how many requests a minute it takes in the
// long run, and how many at once after a pause.
type Limit struct {
	PerMinute, Burst int
}

// String is the limit as a flag takes it: 4/12.
func (l Limit) String() string { return fmt.Sprintf("%d/%d", l.PerMinute, l.Burst) }

// MarshalText is [Limit.String].
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads requests per minute and burst, both at least one, as in
// 4/12.
func (l *Limit) UnmarshalText(text []byte) error {
	rate, burst, found := strings.Cut(string(text), "/")
	perMinute, errRate := strconv.Atoi(rate)
	atOnce, errBurst := strconv.Atoi(burst)
	if !found || errRate != nil || errBurst != nil || perMinute < 1 || atOnce < 1 {
		return fmt.Errorf("reading the limit %q: want requests per minute and burst, both at least 1, such as 4/12", text)
	}
	*l = Limit{PerMinute: perMinute, Burst: atOnce}
	return nil
}

// Limits are ARM's, of the buckets that a request takes from. Polls count as
// reads, and are counted apart from those of the resource.
type Limits struct {
	// ResourceUpdates and ResourceReads are of one virtual machine or scale set.
	ResourceUpdates, ResourceReads Limit
	// SubscriptionUpdates and SubscriptionReads are of all in a subscription.
	SubscriptionUpdates, SubscriptionReads Limit
	// PrincipalUpdates and PrincipalReads are ARM's own, before it asks
	// Microsoft.Compute: of one client in a subscription. They are refilled every
	// second.
	PrincipalUpdates, PrincipalReads Limit
	// Refill is how often the buckets of resources and subscriptions get their
	// tokens.
	Refill time.Duration
}

// Documented are the limits that Azure publishes, where several apply the lowest.
func Documented() Limits {
	return Limits{
		ResourceUpdates: Limit{4, 12}, ResourceReads: Limit{12, 36},
		SubscriptionUpdates: Limit{500, 1500}, SubscriptionReads: Limit{800, 2400},
		PrincipalUpdates: Limit{600, 200}, PrincipalReads: Limit{1500, 250},
		Refill: time.Minute,
	}
}

// of returns the limit of a bucket, and how often ARM refills it.
func (l Limits) of(scope Scope, class Class) (limit Limit, every time.Duration) {
	updates, reads, every := l.ResourceUpdates, l.ResourceReads, l.Refill
	switch scope {
	case Resource:
	case Subscription:
		updates, reads = l.SubscriptionUpdates, l.SubscriptionReads
	case Principal:
		updates, reads, every = l.PrincipalUpdates, l.PrincipalReads, time.Second
	}
	if class == Update {
		return updates, every
	}
	return reads, every
}
