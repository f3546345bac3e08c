package nmi

import (
	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/limit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/supply"
)

func (o *Options) upstreamLimits() supply.Limits {
	return supply.Limits{TokensPerSecond: o.Limits.TokensPerSecond, TokensAtOnce: o.Limits.TokensAtOnce, MetadataPerSecond: o.Limits.MetadataPerSecond}
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
