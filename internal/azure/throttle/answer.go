package throttle

import (
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// The statuses that ask to wait, as HTTP numbers them.
const (
	tooManyRequests = 429
	serverErrors    = 500
)

// Answer is what ARM's answer says of its limits.
type Answer struct {
	// Refused says that ARM refused the request for its limits (429).
	Refused bool
	// Empty are the scopes whose bucket ARM says is empty.
	Empty []Scope
	// After is how long ARM asks to wait; zero if it does not say.
	After time.Duration
	// Left is how many requests ARM says are left, by scope.
	Left map[Scope]int
	// Lost says that there was no answer.
	Lost bool
}

// The headers that are read.
const (
	leftOfCompute = "X-Ms-Ratelimit-Remaining-Resource"
	leftPrefix    = "X-Ms-Ratelimit-Remaining-Subscription-"
)

// ReadAnswer reads the status and headers of an answer that came at now. What it
// cannot read it passes over.
func ReadAnswer(status int, headers map[string][]string, now time.Time) Answer {
	header := textproto.MIMEHeader(headers)
	a := Answer{Refused: status == tooManyRequests, Left: map[Scope]int{}}
	if a.Refused || status >= serverErrors {
		a.After = RetryAfter(headers, now)
	}
	for _, value := range header.Values(leftOfCompute) {
		for entry := range strings.SplitSeq(value, ",") {
			policy, count, _ := strings.Cut(entry, ";")
			a.note(scopeOf(policy), count)
		}
	}
	for name, values := range headers {
		if strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(name), leftPrefix) && len(values) > 0 {
			a.note(Principal, values[0])
		}
	}
	return a
}

// note keeps the least of what is left of a scope.
func (a *Answer) note(scope Scope, count string) {
	left, err := strconv.Atoi(strings.TrimSpace(count))
	if err != nil {
		return
	}
	if before, ok := a.Left[scope]; !ok || left < before {
		a.Left[scope] = left
	}
	if left <= 0 {
		a.Empty = append(a.Empty, scope)
	}
}

// scopeOf reads the name of one of Compute's policies, such as
// Microsoft.Compute/UpdateVMScaleSetResource or …/UpdateVMScaleSetSubscriptionMaximum.
// Any other name is taken for one of the whole subscription: a wait that others
// did not need harms less than a storm.
func scopeOf(policy string) Scope {
	name := strings.ToLower(strings.TrimSpace(policy))
	if strings.HasSuffix(name, "resource") && !strings.Contains(name, "subscription") {
		return Resource
	}
	return Subscription
}

// held are the scopes that must wait after a refusal: those that ARM says are
// empty, else the whole subscription.
func (a Answer) held() []Scope {
	if len(a.Empty) == 0 {
		return []Scope{Resource, Subscription}
	}
	return a.Empty
}

// RetryAfter reads Retry-After, in seconds or as a date, or Azure's forms in milliseconds, of an answer that came
// at now. What cannot be read and what lies in the past is zero.
func RetryAfter(headers map[string][]string, now time.Time) time.Duration {
	header := textproto.MIMEHeader(headers)
	for _, name := range []string{"Retry-After-Ms", "X-Ms-Retry-After-Ms"} {
		if ms, err := strconv.ParseInt(header.Get(name), 10, 32); err == nil && ms > 0 {
			return time.Duration(ms) * time.Millisecond
		}
	}
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	for _, layout := range []string{time.RFC1123, time.RFC850, time.ANSIC} {
		if date, err := time.Parse(layout, value); err == nil {
			return max(0, date.Sub(now))
		}
	}
	return 0
}
