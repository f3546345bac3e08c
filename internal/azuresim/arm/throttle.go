package arm

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// The headers that tell a client how much it may still ask.
const (
	remainingResource = "X-Ms-Ratelimit-Remaining-Resource"
	remainingReads    = "X-Ms-Ratelimit-Remaining-Subscription-Reads"
	remainingWrites   = "X-Ms-Ratelimit-Remaining-Subscription-Writes"
)

// cost says from which buckets a request takes.
type cost struct {
	policy       string // Compute's name of the kind of request
	subscription string
	region       string
	resource     armid.ID // zero: only the subscription's buckets
	write        bool
}

func (s *Server) costOf(id armid.ID, write bool) cost {
	policy := map[string]map[bool]string{
		state.TypeScaleSet:       {false: "GetVMScaleSet", true: "UpdateVMScaleSet"},
		state.TypeVirtualMachine: {false: "LowCostGet", true: "UpdateVM"},
	}[state.ResourceType(id)][write]
	return cost{policy: policy, subscription: id.Subscription(), region: s.State.Region(id), resource: id, write: write}
}

func (s *Server) costOfPoll(ref operationRef) cost {
	c := cost{policy: "GetOperation", subscription: ref.subscription, region: ref.location}
	if op, err := s.State.Operation(ref.subscription, ref.location, ref.id); err == nil {
		c.resource = op.Resource
	}
	return c
}

// limits returns the policy's of the settings.
func (c cost) limits(t settings.Throttling) settings.Policy {
	switch c.policy {
	case "GetVMScaleSet":
		return t.ScaleSetGet
	case "UpdateVMScaleSet":
		return t.ScaleSetUpdate
	case "LowCostGet":
		return t.VMGet
	case "UpdateVM":
		return t.VMUpdate
	}
	return t.Operation
}

// compute are the buckets of Microsoft.Compute.
func (c cost) compute(as settings.Settings, t settings.Throttling) []throttle.Bucket {
	limits, every := c.limits(t), as.Compress(time.Duration(*t.RefillEvery))
	buckets := []throttle.Bucket{bucket(as, *limits.Subscription, c.policy+"SubscriptionMaximum", c.subscription+"/"+c.region, every)}
	if !c.resource.IsZero() {
		buckets = append(buckets, bucket(as, *limits.Resource, c.policy+"Resource", c.resource.String(), every))
	}
	return buckets
}

// front is the bucket of ARM itself, which counts each principal for itself.
func (c cost) front(as settings.Settings, t settings.Throttling, principal string) throttle.Bucket {
	limit, name := *t.Reads, remainingReads
	if c.write {
		limit, name = *t.Writes, remainingWrites
	}
	return bucket(as, limit, name, c.subscription+"/"+principal, as.Compress(time.Second))
}

func bucket(as settings.Settings, limit settings.Limit, name, key string, every time.Duration) throttle.Bucket {
	return throttle.Bucket{Name: name, Key: key, PerMinute: limit.PerMinute * as.Factor(), Burst: limit.Burst, Every: every}
}

// charge takes what a request costs, first at ARM's own door and then at
// Compute's. It returns the headers that say what is left, and an error with
// them if there was not enough.
func (s *Server) charge(call *wire.Call, claims token.Claims, c cost) (http.Header, error) {
	as := s.State.Settings()
	if as.ARM.Throttling == nil {
		return nil, nil
	}
	limits, header := as.ARM.Throttling.Full(), http.Header{}
	left, refusal := s.Meter.Take(claims.ObjectID, c.front(as, limits, claims.ObjectID))
	for _, l := range left {
		header.Set(l.Name, strconv.Itoa(l.Tokens))
	}
	if refusal != nil {
		return nil, tooMany(call, header, refusal, wire.Refuse(http.StatusTooManyRequests, "SubscriptionRequestsThrottled",
			"Number of '%s' requests for subscription '%s' actor '%s' exceeded. Please try again after '%s' seconds after additional tokens are available. Refer to https://aka.ms/arm-throttling for additional information.",
			verbOf(c.write), c.subscription, claims.ObjectID, wholeSeconds(refusal.After)))
	}
	left, refusal = s.Meter.Take(claims.ObjectID, c.compute(as, limits)...)
	header.Set(remainingResource, listed(left))
	if refusal != nil {
		e := wire.Refuse(http.StatusTooManyRequests, "OperationNotAllowed",
			"The server rejected the request because too many requests have been received for this subscription.")
		e.Target = refusal.Bucket
		e.Detail = fmt.Sprintf(`{"operationGroup":%q,"retryAfterSeconds":%s}`, refusal.Bucket, wholeSeconds(refusal.After))
		return nil, tooMany(call, header, refusal, e)
	}
	return header, nil
}

func verbOf(write bool) string {
	if write {
		return "write"
	}
	return "read"
}

func listed(left []throttle.Left) string {
	words := make([]string, 0, len(left))
	for _, l := range left {
		words = append(words, fmt.Sprintf("Microsoft.Compute/%s;%d", l.Name, l.Tokens))
	}
	return strings.Join(words, ",")
}

func tooMany(call *wire.Call, header http.Header, refusal *throttle.Refusal, e *wire.Error) error {
	call.Entry.Throttle = &journal.Throttle{Bucket: refusal.Bucket, Foreign: refusal.Foreign, Early: refusal.Early}
	header.Set("Retry-After", wholeSeconds(refusal.After))
	e.Header = header
	return e
}

// withHeaders adds the headers to an answer or a refusal.
func withHeaders(reply wire.Reply, err error, header http.Header) (wire.Reply, error) {
	if refused, ok := err.(*wire.Error); ok { //nolint:errorlint // set where it is made, never wrapped
		refused.Header = joined(refused.Header, header)
	}
	reply.Header = joined(reply.Header, header)
	return reply, err
}

func joined(a, b http.Header) http.Header {
	all := http.Header{}
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// Burst asks for a resource as another client would, b.Requests times, as far as
// the buckets hold out. It returns what they hold then.
func (s *Server) Burst(b model.Burst) (model.BurstResult, error) {
	as := s.State.Settings()
	if as.ARM.Throttling == nil {
		return model.BurstResult{}, fmt.Errorf("%w: nothing is limited: turn settings.arm.throttling on first", state.ErrInvalid)
	}
	id, err := s.State.Find(b.ScaleSet, b.VM)
	if err != nil {
		return model.BurstResult{}, err
	}
	if b.Requests < 1 || b.Verb != "get" && b.Verb != "update" {
		return model.BurstResult{}, fmt.Errorf("%w: want one request or more, and the verb get or update", state.ErrInvalid)
	}
	c := s.costOf(id, b.Verb == "update")
	buckets := c.compute(as, as.ARM.Throttling.Full())
	if b.OnlySubscription {
		buckets = buckets[:1]
	}
	result := model.BurstResult{Left: map[string]int{}}
	for _, l := range s.Meter.Drain("another client", b.Requests, buckets...) {
		result.Left[l.Name] = l.Tokens
	}
	return result, nil
}
