package supply

import (
	"context"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/budget"
)

// entraAtOnce and entraPerSecond bound token requests to Entra, which documents
// no limit for a node: few enough to be polite when many service principals are
// cold at once.
const (
	entraAtOnce    = 16
	entraPerSecond = 50
)

// Limits are what the metadata service takes from this node.
type Limits struct {
	// TokensPerSecond and TokensAtOnce bound token requests, MetadataPerSecond
	// all others.
	TokensPerSecond, TokensAtOnce, MetadataPerSecond int
}

// Outbound is what each upstream takes from this node, and whose it is. Use
// [NewOutbound].
type Outbound struct {
	// tokens pays for identities on the node, exempt for pods that ask the
	// metadata service themselves: both come out of the limits of managed
	// identities.
	tokens, exempt *budget.Share
	// metadata pays for what is forwarded and no token.
	metadata *budget.Share
	entra    *budget.Share
}

// NewOutbound gives tokens three times the weight of requests that are forwarded,
// which can hold at most two of five places: a slow reader holds its own.
func NewOutbound(o Limits, metrics Metrics) Outbound {
	managed := budget.New(budget.Options{PerSecond: o.TokensPerSecond, AtOnce: o.TokensAtOnce})
	metadata := budget.New(budget.Options{PerSecond: o.MetadataPerSecond, AtOnce: o.TokensAtOnce})
	entra := budget.New(budget.Options{PerSecond: entraPerSecond, AtOnce: entraAtOnce})
	metrics.Waiting("imds_token", managed.Waiting)
	metrics.Waiting("imds_metadata", metadata.Waiting)
	metrics.Waiting("entra", entra.Waiting)
	return Outbound{
		tokens: managed.Share(3, 0), exempt: managed.Share(1, max(1, 2*o.TokensAtOnce/5)),
		metadata: metadata.Share(1, 0), entra: entra.Share(1, 0),
	}
}

func (b Outbound) of(id identity.Identity) *budget.Share {
	if id.Attached() {
		return b.tokens
	}
	return b.entra
}

// Enter lets a forwarded request wait for its turn, as long as for a token.
func (b Outbound) Enter(ctx context.Context, record *audit.Record) (func(throttled bool, after time.Duration), error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	share := b.metadata
	if record.Route == audit.RouteToken {
		share = b.exempt
	}
	ticket, err := share.Acquire(ctx, string(record.UID))
	if err != nil {
		return nil, err
	}
	ticket.Sent() // it is, as soon as this returns
	return func(throttled bool, after time.Duration) {
		ticket.Done(budget.Outcome{Throttled: throttled, After: after})
	}, nil
}
