package redirect

import (
	"context"
	"errors"
	"fmt"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/loopback"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
)

// Prepare makes what must be there before NMI can listen on the target, and says
// what that was: NMI's own link, if there is to be one. If it cannot be made, pods
// are kept from the metadata service all the same.
func (n *NFTables) Prepare(ctx context.Context) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil || !n.config.Link {
		return "", err
	}
	var change Change
	found, err := n.look()
	if err == nil {
		err = n.ensureOwnLink(found, &change)
	}
	if err != nil {
		return "", fmt.Errorf("preparing the redirect's target: %w", err)
	}
	return change.OwnLink, nil
}

// ensureOwnLink makes the target's link, if that is to be NMI's own. Without it
// pods cannot be led there, but are kept out.
func (n *NFTables) ensureOwnLink(found tables, change *Change) error {
	if !n.config.Link {
		return nil
	}
	var err error
	if change.OwnLink, err = ownlink.Ensure(n.config.NetNS, n.config.Target.Addr()); err == nil {
		return nil
	}
	if errFences := n.ensureTables(n.fences(err), found, false, change); errFences != nil {
		return fmt.Errorf("%w; %w", denied(err), errFences)
	}
	return denied(err)
}

// fences are the tables that only stop packets. An address that is somebody
// else's is not guarded: that would cut it off.
func (n *NFTables) fences(reason error) []ruleset.Table {
	if _, refused := errors.AsType[*ownlink.RefusalError](reason); !refused {
		return n.desired[1:]
	}
	spec := n.config.spec()
	spec.Own = false
	return ruleset.Desired(spec)[1:]
}

// removeOwnLink removes what an earlier target has left. It is called when the
// rules were replaced, and not later: an agent that is about to take the redirect
// over may have made its link already.
func (n *NFTables) removeOwnLink(change *Change) error {
	if n.config.Link {
		return nil
	}
	removed, err := ownlink.Remove(n.config.NetNS)
	if err != nil {
		return fmt.Errorf("removing what an earlier target has left: %w", denied(err))
	}
	if removed {
		change.OwnLink = fmt.Sprintf("link %s: of an earlier target, removed", ownlink.Name)
	}
	return nil
}

// openLoopback has links let packets through to a target on loopback.
func (n *NFTables) openLoopback(change *Change) error {
	if !n.config.spec().Loopback() {
		return nil
	}
	var err error
	if change.Links, err = loopback.Set(n.config.NetNS, true); err != nil {
		return fmt.Errorf("letting links reach %s: %w", n.config.Target, denied(err))
	}
	return nil
}

// verifyLinks reads back what ensureOwnLink and openLoopback do.
func (n *NFTables) verifyLinks() error {
	switch {
	case n.config.Link:
		return ownlink.Verify(n.config.NetNS, n.config.Target.Addr())
	case n.config.spec().Loopback():
		return loopback.Verify(n.config.NetNS)
	}
	return nil
}
