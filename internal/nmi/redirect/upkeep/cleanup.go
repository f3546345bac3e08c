package upkeep

import (
	"context"
	"errors"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/predecessor"
)

// cleanup is the command that leaves a node as if no agent had been there.
func cleanup() tool {
	return tool{
		name:    "cleanup",
		summary: "removes what agents have left in this node's network",
		help: `It removes the tables of nftables, switches routing to loopback off on every link, removes NMI's own link,
forgets connections to NMI, and removes the chain aad-metadata that AAD Pod Identity v1.8.17 may have left. Pods then reach
the node's own metadata service. It can be repeated. While NMI runs on the node it removes nothing.

Exit code: 0 if nothing is left, 1 after an error, 2 for a command line that cannot be read, 3 if the
old chain is in legacy iptables, where it has to be removed by the commands that are printed.`,
		run: runCleanup,
	}
}

func runCleanup(ctx context.Context, i *invocation) int {
	removed, err := i.datapath.Delete(ctx)
	i.tellRemoval(removed)
	if errors.Is(err, redirect.ErrHeld) {
		command.Sayf(i.stderr, "nmi cleanup: NMI runs on this node and keeps the redirect: delete its DaemonSet first\n")
		return command.CodeError
	}
	old, oldErr := predecessor.Remove(i.config.NetNS)
	if old.Removed {
		command.Sayf(i.stdout, "removed chain aad-metadata of AAD Pod Identity from table ip nat\n")
	}
	if err := errors.Join(err, oldErr); err != nil {
		command.Sayf(i.stderr, "nmi cleanup: %v\n", err)
		return command.CodeError
	}
	if old.Legacy {
		command.Sayf(i.stderr, "nmi cleanup: legacy iptables has the chain aad-metadata of AAD Pod Identity. Enter on the node:\n")
		for _, line := range predecessor.Commands() {
			command.Sayf(i.stderr, "  %s\n", line)
		}
		return command.CodeLeft
	}
	if removed.IsZero() && !old.Removed {
		command.Sayf(i.stdout, "nothing was there\n")
	}
	return command.CodeDone
}

func (i *invocation) tellRemoval(removed redirect.Removal) {
	for _, table := range removed.Tables {
		command.Sayf(i.stdout, "removed table ip %s\n", table)
	}
	if removed.Links > 0 {
		command.Sayf(i.stdout, "switched route_localnet off on %d links\n", removed.Links)
	}
	if removed.OwnLink {
		command.Sayf(i.stdout, "removed link %s\n", ownlink.Name)
	}
	if removed.Flows > 0 {
		command.Sayf(i.stdout, "forgot %d connections to NMI\n", removed.Flows)
	}
	if removed.FlowsErr != nil {
		command.Sayf(i.stderr, "nmi cleanup: the kernel will forget connections to NMI by itself: %v\n", removed.FlowsErr)
	}
}
