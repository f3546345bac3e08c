package redirect

import (
	"errors"
	"fmt"
	"net/netip"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// forgetFlows deletes the tracked connections to the metadata endpoint that are
// not led to the target, and returns how many those were. The kernel asks NAT
// rules about the first packet of a connection only, so that one that is older
// than the rules would go on past them.
func forgetFlows(c Config) (uint, error) {
	handle, err := openConntrack(c.NetNS)
	if err != nil {
		return 0, fmt.Errorf("forgetting connections that are older than the rules: %w", err)
	}
	defer handle.Close()
	var deleted uint
	for range 3 { // a table that changes while it is read may hide entries
		var n uint
		n, err = handle.ConntrackDeleteFilters(nl.ConntrackTable, unix.AF_INET, astray(c))
		deleted += n
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return deleted, fmt.Errorf("forgetting connections that are older than the rules: %w", denied(err))
	}
	return deleted, nil
}

func openConntrack(namespace int) (*nl.Handle, error) {
	if namespace == 0 {
		return nl.NewHandle(unix.NETLINK_NETFILTER)
	}
	return nl.NewHandleAt(netns.NsHandle(namespace), unix.NETLINK_NETFILTER)
}

// astray matches connections to the metadata endpoint whose answers come from
// elsewhere than the target. Those that NMI is serving stay.
type astray Config

// MatchConntrackFlow implements the filter of the netlink package.
func (c astray) MatchConntrackFlow(flow *nl.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_TCP {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	from, okReply := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return ok && okReply &&
		netip.AddrPortFrom(to.Unmap(), flow.Forward.DstPort) == c.Metadata &&
		netip.AddrPortFrom(from.Unmap(), flow.Reverse.SrcPort) != c.Target
}
