package world

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// The addresses of the world. Azure's and the API server's stand on lo of their
// namespaces, so that every node reaches the same ones over a link of its own.
var (
	metadataAddr = netip.MustParseAddr("169.254.169.254") //nolint:gochecknoglobals // constant
	azureAddr    = netip.MustParseAddr("10.250.1.1")      //nolint:gochecknoglobals // constant
	controlAddr  = netip.MustParseAddr("10.250.2.1")      //nolint:gochecknoglobals // constant
)

// azureHosts are the names under which the simulator serves.
func azureHosts() []string {
	return []string{"management.azure.com", "login.microsoftonline.com", vaultName + ".vault.azure.net"}
}

// resolve is the hosts file for connections made from this process.
func resolve(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err == nil && (strings.HasSuffix(host, ".azure.com") || strings.HasSuffix(host, ".microsoftonline.com") || strings.HasSuffix(host, ".azure.net")) {
		return net.JoinHostPort(azureAddr.String(), port)
	}
	return address
}

func tlsConfig(pool *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// octet is the number of a node as a part of its addresses.
func octet(number int) byte { return byte(number) } //nolint:gosec // there are two nodes

func host(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func (w *World) buildNetwork(context.Context) error {
	var err error
	if w.Azure, err = w.namespace("azure", azureAddr, metadataAddr); err != nil {
		return err
	}
	if w.Control, err = w.namespace("control", controlAddr); err != nil {
		return err
	}
	for i, layout := range []Layout{Bridge, PointToPoint} {
		node, err := w.buildNode(i+1, layout)
		if err != nil {
			return fmt.Errorf("building node %d: %w", i+1, err)
		}
		w.Nodes = append(w.Nodes, node)
	}
	return nil
}

// namespace makes a namespace that forwards nothing and holds addresses on lo.
func (w *World) namespace(name string, addrs ...netip.Addr) (*netns.NS, error) {
	ns, err := netns.New(name)
	if err != nil {
		return nil, err
	}
	w.keep(ns)
	for _, addr := range addrs {
		if err := ns.AddAddr("lo", host(addr)); err != nil {
			return nil, err
		}
	}
	return ns, nil
}

// buildNode makes the node's namespace and its links to azure and control. Only
// then does the route to the metadata service take the place of the blackhole.
func (w *World) buildNode(number int, layout Layout) (*Node, error) {
	ns, err := w.namespace(fmt.Sprintf("node%d", number))
	if err != nil {
		return nil, err
	}
	n := &Node{
		world: w, NS: ns, Layout: layout, number: number,
		Name:    fmt.Sprintf("node-%d", number),
		Addr:    netip.AddrFrom4([4]byte{10, 240, octet(number), 2}),
		PodCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, octet(number), 0}), 24),
	}
	if err := ns.SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
		return nil, err
	}
	if err := n.uplink(w.Azure, "azure0", 240, azureAddr, metadataAddr); err != nil {
		return nil, err
	}
	if err := n.uplink(w.Control, "control0", 241, controlAddr); err != nil {
		return nil, err
	}
	if layout == Bridge {
		return n, ns.AddBridge("cni0", netip.PrefixFrom(n.gateway(), 24))
	}
	return n, nil
}

// uplink joins the node to a namespace that holds the given addresses, and routes
// the node's pods back.
func (n *Node) uplink(to *netns.NS, link string, second byte, addrs ...netip.Addr) error {
	far := netip.AddrFrom4([4]byte{10, second, octet(n.number), 1})
	near := netip.AddrFrom4([4]byte{10, second, octet(n.number), 2})
	err := netns.Connect(
		netns.End{NS: n.NS, Link: link, Addr: netip.PrefixFrom(near, 30)},
		netns.End{NS: to, Link: n.Name, Addr: netip.PrefixFrom(far, 30)},
	)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if err := n.NS.SetRoute(host(addr), far); err != nil {
			return err
		}
	}
	return to.SetRoute(n.PodCIDR, near)
}
