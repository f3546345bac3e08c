package nmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/predecessor"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/shadow"
)

// survey is what a look at the node's network, beside our own rules, has found.
type survey struct {
	old predecessor.Found
	// shadows are rules of others that keep pods from the redirect.
	shadows []string
	// noIPv4 says that the node speaks IPv6 alone.
	noIPv4 bool
}

// Survey implements [redirector]. What it found before an error is valid.
func (n nftables) Survey() (survey, error) {
	var s survey
	var errs [3]error
	s.old, errs[0] = predecessor.Remove(n.config.NetNS)
	s.shadows, errs[1] = shadow.Find(n.config.NetNS, n.config.Metadata, ruleset.Priority)
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		errs[2] = fmt.Errorf("reading the node's addresses: %w", err)
	}
	s.noIPv4 = err == nil && !speaksIPv4(addresses, n.config)
	return s, errors.Join(errs[:]...)
}

// speaksIPv4 says whether a host with these addresses can speak IPv4 with others,
// as it cannot by a link of the agent's own.
func speaksIPv4(addresses []net.Addr, c redirect.Config) bool {
	return slices.ContainsFunc(addresses, func(address net.Addr) bool {
		prefix, err := netip.ParsePrefix(address.String())
		addr := prefix.Addr().Unmap()
		return err == nil && addr.Is4() && !addr.IsLoopback() && (!c.Link || addr != c.Target.Addr())
	})
}

// survey looks at the node's network once the redirect is in place, and then as
// often as at the redirect. It says what has changed since the last look.
func (r *runner) survey(ctx context.Context) {
	select {
	case <-r.kept:
	case <-ctx.Done():
		return
	}
	ticker := time.NewTicker(r.config.RuleInterval)
	defer ticker.Stop()
	var before survey
	for {
		now, err := r.redirect.Survey()
		if err != nil {
			r.log.Warn("could not look for rules of others", "error", err)
		}
		r.tell(before, now)
		before = now
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tell logs what a survey has found that the one before has not.
func (r *runner) tell(before, now survey) {
	if now.old.Removed {
		r.log.Info("removed the chain of an old agent of AAD Pod Identity", "chain", "aad-metadata", "table", "ip nat")
	}
	if now.old.Legacy && !before.old.Legacy {
		r.log.Warn("legacy iptables has the chain of an old agent of AAD Pod Identity: enter the commands on the node", "chain", "aad-metadata", "commands", predecessor.Commands())
	}
	for _, found := range now.shadows {
		if !slices.Contains(before.shadows, found) {
			r.log.Error("pods may get no tokens: a rule of somebody else's comes before the redirect", "rule", found)
		}
	}
	for _, gone := range before.shadows {
		if !slices.Contains(now.shadows, gone) {
			r.log.Info("a rule that came before the redirect is gone", "rule", gone)
		}
	}
	if now.noIPv4 && !before.noIPv4 {
		r.log.Warn("the node has no IPv4 address: pods without one get no tokens, since the metadata service speaks IPv4 alone", "metadata", r.config.Metadata.String())
	}
}
