package options

import (
	"fmt"
	"net/netip"
)

// target says where to listen for what pods send to Listener.
func (o *Options) target(c *Config) error {
	c.Link = o.RedirectTarget == "link"
	c.API = c.Listener.String()
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.Listener.Port())
	switch addr := c.Listener.Addr(); {
	case !c.Link && o.RedirectTarget != "loopback":
		return fmt.Errorf("--redirect-target is %q: want loopback or link", o.RedirectTarget)
	case c.Link && !addr.IsLinkLocalUnicast():
		return fmt.Errorf("--nmi-listen-address is %s: with --redirect-target=link want a link-local address (169.254.0.0/16), or none for 169.254.255.79", addr)
	case c.Link:
		c.Host = local.String()
	case addr.IsUnspecified():
		// Connections can be led to one address only; this one is among all.
		c.Listener = local
	}
	return nil
}
