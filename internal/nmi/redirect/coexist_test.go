package redirect_test

import (
	"bytes"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ruleset"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/shadow"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// enter enters command lines on the node.
func (w *world) enter(program string, lines ...string) {
	w.Helper()
	for _, line := range lines {
		w.feed("", program, strings.Fields(line)...)
	}
}

// feed runs a program on the node with an input.
func (w *world) feed(input, program string, args ...string) {
	w.Helper()
	var complaints bytes.Buffer
	cmd := exec.CommandContext(w.Context(), program, args...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &complaints
	w.must(w.node.Start(cmd))
	if err := cmd.Wait(); err != nil {
		w.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, complaints.String())
	}
}

// proxyIPTables has the shape of kube-proxy's rules in iptables mode, with a
// Service that claims the metadata address as an external one of its own, and the
// kubelet's rule that guards the node's loopback.
func (w *world) proxyIPTables(iptables string) {
	w.Helper()
	w.must(w.node.SetSysctl("net.ipv4.conf.all.route_localnet", "1"))
	w.enter(iptables,
		"-t nat -N KUBE-SERVICES", "-t nat -N KUBE-EXT-1", "-t nat -N KUBE-SEP-1", "-t nat -N KUBE-MARK-MASQ", "-t nat -N KUBE-POSTROUTING",
		"-t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
		"-t nat -A PREROUTING -m comment --comment kubernetes -j KUBE-SERVICES",
		"-t nat -A OUTPUT -m comment --comment kubernetes -j KUBE-SERVICES",
		"-t nat -A POSTROUTING -m comment --comment kubernetes -j KUBE-POSTROUTING",
		"-t nat -A KUBE-SERVICES -d 169.254.169.254/32 -p tcp -m comment --comment default/greedy -m tcp --dport 80 -j KUBE-EXT-1",
		"-t nat -A KUBE-EXT-1 -j KUBE-MARK-MASQ", "-t nat -A KUBE-EXT-1 -j KUBE-SEP-1",
		"-t nat -A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80",
		"-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
		"-t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully",
		"-t filter -N KUBE-FIREWALL", "-t filter -A INPUT -j KUBE-FIREWALL",
		"-t filter -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP")
}

// proxyNFTables has the shape of kube-proxy's table in nftables mode, with the same
// Service.
func (w *world) proxyNFTables() {
	w.Helper()
	w.feed(`table ip kube-proxy {
		map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 169.254.169.254 . tcp . 80 : goto service-1 }; }
		chain service-1 { mark set mark or 0x4000; goto endpoint-1; }
		chain endpoint-1 { meta l4proto tcp dnat to 10.0.0.1:80; }
		chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
		chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
		chain nat-output { type nat hook output priority -100; jump services; }
		chain nat-postrouting { type nat hook postrouting priority srcnat; mark and 0x4000 == 0 return; masquerade fully-random; }
		chain filter-prerouting { type filter hook prerouting priority dstnat - 10; ct state new counter; }
		chain filter-forward { type filter hook forward priority -110; ct state new counter; }
	}`, "nft", "-f", "-")
}

// network has the shape of a CNI's rules: pods' packets are let through before
// anybody asks, and get the node's address on their way out.
func (w *world) network() {
	w.Helper()
	w.enter("iptables-nft",
		"-t filter -N CNI-FORWARD", "-t filter -I FORWARD 1 -j CNI-FORWARD",
		"-t filter -A CNI-FORWARD -s 10.244.0.0/16 -j ACCEPT", "-t filter -A CNI-FORWARD -d 10.244.0.0/16 -j ACCEPT",
		"-t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE")
}

// TestBesideOthers: the rules of a real node's other programs change nothing for a
// pod, whoever was first, while NMI is there and while it is not.
func TestBesideOthers(t *testing.T) {
	for name, others := range map[string]func(*world){
		"kube-proxy, iptables":             func(w *world) { w.proxyIPTables("iptables-nft") },
		"kube-proxy, legacy iptables":      func(w *world) { w.proxyIPTables("iptables-legacy") },
		"kube-proxy, nftables":             func(w *world) { w.proxyNFTables() },
		"a CNI":                            func(w *world) { w.network() },
		"a CNI and kube-proxy":             func(w *world) { w.network(); w.proxyNFTables() },
		"a drop of the address in forward": func(w *world) { w.enter("iptables-nft", "-A FORWARD -d 169.254.169.254/32 -j DROP") },
		"a drop of it behind the redirect": func(w *world) {
			w.feed("table ip hardening { chain c { type filter hook prerouting priority 0; ip daddr 169.254.169.254 drop; }; }", "nft", "-f", "-")
		},
	} {
		for when, first := range map[string]bool{"before": true, "after": false} {
			t.Run(name+" "+when, func(t *testing.T) {
				eachTarget(t, func(w *world) {
					w.rivalry()
					if first {
						others(w)
					}
					d, end := w.nmi()
					if !first {
						others(w)
					}
					w.hears(w.pod, metadata, "nmi hears "+podIP)
					if change := must2(d.Ensure(w.Context()))(w); !change.IsZero() {
						w.Errorf("they are taken for damage: %+v", change)
					}
					if found := must2(shadow.Find(w.node.FD(), netip.MustParseAddrPort(metadata), ruleset.Priority))(w); len(found) > 0 {
						w.Errorf("they are taken for what keeps pods away: %s", found)
					}
					end()
					w.closed()
					w.noLeaks()
				})
			})
		}
	}
}

// closed fails the test unless the pod gets no connection, in whatever way.
func (w *world) closed() {
	w.Helper()
	if got, err := w.askBriefly(); err == nil {
		w.Errorf("without NMI the pod hears %q", got)
	}
}

// TestADropBeforeTheRedirect is what cannot be made good; but it is found.
func TestADropBeforeTheRedirect(t *testing.T) {
	w := newWorld(t)
	d, _ := w.nmi()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
	w.enter("iptables-nft", "-t raw -A PREROUTING -d 169.254.169.254/32 -j DROP")
	w.silent(w.pod, metadata)
	w.must(d.Verify(t.Context()))
	want := []string{"chain PREROUTING of table raw drops what pods send to 169.254.169.254:80"}
	if diff := cmp.Diff(want, must2(shadow.Find(w.node.FD(), netip.MustParseAddrPort(metadata), ruleset.Priority))(w)); diff != "" {
		t.Error(diff)
	}
}

// TestDualStack: a pod that has IPv6 too asks over IPv4 and is served.
func TestDualStack(t *testing.T) {
	w := newWorld(t)
	for n, address := range map[*netns.NS]string{w.node: "fd00::1/64", w.pod: "fd00::2/64"} {
		link := map[bool]string{true: "vethpod", false: "eth0"}[n == w.node]
		w.must(n.AddAddr(link, netip.MustParsePrefix(address)))
	}
	w.nmi()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
	w.noLeaks()
}

// TestANodeOfIPv6Alone: the rules can be put in place there, and do no harm.
func TestANodeOfIPv6Alone(t *testing.T) {
	n := netns.ForTest(t, "node")
	if err := n.AddBridge("cni0", netip.MustParsePrefix("fd00::1/64")); err != nil {
		t.Fatal(err)
	}
	d := must2(redirect.New(redirect.Config{NetNS: n.FD(), UID: uint32(unix.Geteuid()), Bound: true}))(t)
	must2(d.Ensure(t.Context()))(t)
	if err := d.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if removed := must2(d.Delete(t.Context()))(t); len(removed.Tables) != 3 {
		t.Errorf("removed %+v", removed)
	}
}
