package nmi

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/limit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/budget"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
)

// LimitOptions are what a user sets of limits: what the metadata service takes
// from a node, and what the agent takes from pods.
type LimitOptions struct {
	// TokensPerSecond and TokensAtOnce bound token requests to the metadata
	// service, MetadataPerSecond all others.
	TokensPerSecond, TokensAtOnce, MetadataPerSecond int
	// PodPerSecond and PodAtOnce bound the requests of one pod, NodeAtOnce those
	// of all.
	PodPerSecond, PodAtOnce, NodeAtOnce int
}

// defaultLimits are the documented ones of the metadata service, and for pods
// some that no program reaches which keeps its tokens.
func defaultLimits() LimitOptions {
	return LimitOptions{TokensPerSecond: 20, TokensAtOnce: 5, MetadataPerSecond: 5, PodPerSecond: 200, PodAtOnce: 64, NodeAtOnce: 1024}
}

// limits lists the options with their flags.
func (o *LimitOptions) limits() []limitFlag {
	return []limitFlag{
		{&o.TokensPerSecond, "imds-token-rate", "token requests a second that the metadata service takes from a node"},
		{&o.TokensAtOnce, "imds-token-concurrency", "token requests that the metadata service takes from a node at once"},
		{&o.MetadataPerSecond, "imds-metadata-rate", "other requests a second that the metadata service takes from a node"},
		{&o.PodPerSecond, "pod-request-rate", "requests a second that a pod may make on average; for a moment twice as many"},
		{&o.PodAtOnce, "pod-concurrency", "requests that a pod may have under way"},
		{&o.NodeAtOnce, "node-concurrency", "requests that all pods of the node may have under way; beyond, each pod may have one"},
	}
}

type limitFlag struct {
	value       *int
	name, usage string
}

func (o *LimitOptions) addFlags(f *pflag.FlagSet) {
	for _, l := range o.limits() {
		f.IntVar(l.value, l.name, *l.value, l.usage)
	}
}

// maxLimit bounds the limits: beyond it there is none to speak of.
const maxLimit = 1 << 20

func (o *LimitOptions) check() error {
	for _, l := range o.limits() {
		if *l.value < 1 || *l.value > maxLimit {
			return fmt.Errorf("--%s is %d: want 1 to %d", l.name, *l.value, maxLimit)
		}
	}
	return nil
}

// entraAtOnce and entraPerSecond bound token requests to Entra, which documents
// no limit for a node: few enough to be polite when many service principals are
// cold at once.
const (
	entraAtOnce    = 16
	entraPerSecond = 50
)

// outbound is what each upstream takes from this node, and whose it is.
type outbound struct {
	// tokens pays for identities on the node, exempt for pods that ask the
	// metadata service themselves: both come out of the limits of managed
	// identities.
	tokens, exempt *budget.Share
	// metadata pays for what is forwarded and no token.
	metadata *budget.Share
	entra    *budget.Share
}

// newOutbound gives tokens three times the weight of requests that are forwarded,
// which can hold at most two of five places: a slow reader holds its own.
func newOutbound(o LimitOptions, metrics *report.Metrics) outbound {
	managed := budget.New(budget.Options{PerSecond: o.TokensPerSecond, AtOnce: o.TokensAtOnce})
	metadata := budget.New(budget.Options{PerSecond: o.MetadataPerSecond, AtOnce: o.TokensAtOnce})
	entra := budget.New(budget.Options{PerSecond: entraPerSecond, AtOnce: entraAtOnce})
	metrics.Waiting("imds_token", managed.Waiting)
	metrics.Waiting("imds_metadata", metadata.Waiting)
	metrics.Waiting("entra", entra.Waiting)
	return outbound{
		tokens: managed.Share(3, 0), exempt: managed.Share(1, max(1, 2*o.TokensAtOnce/5)),
		metadata: metadata.Share(1, 0), entra: entra.Share(1, 0),
	}
}

func (b outbound) of(id identity.Identity) *budget.Share {
	if id.Attached() {
		return b.tokens
	}
	return b.entra
}

// Enter lets a forwarded request wait for its turn, as long as for a token.
func (b outbound) Enter(ctx context.Context, record *audit.Record) (func(throttled bool, after time.Duration), error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamWait)
	defer cancel()
	share := b.metadata
	if record.Route == audit.RouteToken {
		share = b.exempt
	}
	ticket, err := share.Acquire(ctx, string(record.UID))
	if err != nil {
		return nil, err
	}
	return func(throttled bool, after time.Duration) {
		ticket.Done(budget.Outcome{Throttled: throttled, After: after})
	}, nil
}

// newCache puts the cache and the budgets in front of the sources.
func (r *runner) newCache(sources tokensource.Sources, paid outbound) *cache.Cache {
	return cache.New(cache.Options{
		Source: sources, Share: paid.of, Pods: livePods{r.callers}, Patience: upstreamWait, Timeout: upstreamTime,
		Observe: func(result cache.Result) { r.metrics.Cached(string(result)) },
	})
}

func (r *runner) newLimiter() *limit.Limiter {
	o := r.options.Limits
	return limit.New(limit.Options{
		PerSecond: o.PodPerSecond, AtOnce: o.PodAtOnce, AllAtOnce: o.NodeAtOnce,
		Observe: func(met limit.Limit) { r.metrics.Limited(string(met)) },
	})
}

// livePods are those of this node that run.
type livePods struct{ index *caller.Index }

// Alive reports whether the very pod runs, not one of its name.
func (l livePods) Alive(pod identity.Key, uid types.UID) bool {
	known, err := l.index.FindNamed(pod)
	return err == nil && known.UID == uid
}
