package redirect

import (
	"errors"
	"fmt"
	"net/netip"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// forgetFlows deletes tracked connections and returns how many those were. The
// kernel asks NAT rules about the first packet of a connection only, so that one
// that is older than the rules would go on past them, and one that they have led
// to NMI would go on to it without them.
func forgetFlows(namespace int, which nl.CustomConntrackFilter) (uint, error) {
	handle, err := openConntrack(namespace)
	if err != nil {
		return 0, fmt.Errorf("forgetting connections: %w", err)
	}
	defer handle.Close()
	var deleted uint
	for range 3 { // a table that changes while it is read may hide entries
		var n uint
		n, err = handle.ConntrackDeleteFilters(nl.ConntrackTable, unix.AF_INET, which)
		deleted += n
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return deleted, fmt.Errorf("forgetting connections: %w", denied(err))
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
	to, from, ok := ends(flow)
	return ok && to == c.Metadata && from != c.Target
}

// led matches connections to the metadata endpoint that the target answers.
type led Config

// MatchConntrackFlow implements the filter of the netlink package.
func (c led) MatchConntrackFlow(flow *nl.ConntrackFlow) bool {
	to, from, ok := ends(flow)
	return ok && to == c.Metadata && from == c.Target
}

// ends returns where a TCP connection was to go and from where it is answered.
func ends(flow *nl.ConntrackFlow) (to, from netip.AddrPort, ok bool) {
	dst, okForward := netip.AddrFromSlice(flow.Forward.DstIP)
	src, okReply := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return netip.AddrPortFrom(dst.Unmap(), flow.Forward.DstPort), netip.AddrPortFrom(src.Unmap(), flow.Reverse.SrcPort),
		flow.Forward.Protocol == unix.IPPROTO_TCP && okForward && okReply
}
