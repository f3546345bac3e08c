package nmi

import (
	"context"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/keeper"
)

// redirector leads pods' metadata requests here.
type redirector interface {
	// Prepare makes what pods are led to, so that the agent can listen there, and
	// says what it made; "" if it was there.
	Prepare(ctx context.Context) (string, error)
	// Keep puts the rules in place and keeps them there until ctx ends; they
	// stay when it does.
	Keep(ctx context.Context, hooks redirectHooks) error
	// Verify reads the rules back.
	Verify(ctx context.Context) error
	// Refuse lets no new connection of a pod come here.
	Refuse() error
	// Survey looks at what else is in the node's network.
	Survey() (survey, error)
	// Tables names what of agents' rules the node has.
	Tables() ([]string, error)
	// Delete takes everything from the node.
	Delete(ctx context.Context) (redirect.Removal, error)
}

// redirectHooks are told how the keeping goes.
type redirectHooks struct {
	interval time.Duration
	ready    func()
	changed  func(redirect.Change)
	failed   func(error)
}

// nftables is the redirector of the package redirect.
type nftables struct {
	*redirect.NFTables
	config redirect.Config
}

func newNFTables(c redirect.Config) (redirector, error) {
	datapath, err := redirect.New(c)
	if err != nil {
		return nil, err
	}
	return nftables{datapath, c}, nil
}

// Keep runs the keeper.
func (n nftables) Keep(ctx context.Context, hooks redirectHooks) error {
	return keeper.Run(ctx, keeper.Options{
		Datapath: n.NFTables, Watcher: n.NFTables, Interval: hooks.interval,
		Ready: hooks.ready, Changed: hooks.changed, Failed: hooks.failed,
	})
}
