package shadow_test

import (
	"bytes"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/shadow"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// run enters a command line on a node.
func run(t *testing.T, n *netns.NS, line string) {
	t.Helper()
	fields := strings.Fields(line)
	var complaints bytes.Buffer
	cmd := exec.CommandContext(t.Context(), fields[0], fields[1:]...)
	cmd.Stderr = &complaints
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, complaints.String())
	}
}

func table(family, hook, rule string) string {
	return "nft add table " + family + " t { chain u { tcp dport 80 drop; }; chain c { type filter hook " + hook + "; " + rule + "; }; }"
}

func TestFind(t *testing.T) {
	const endpoint = " what pods send to 169.254.169.254:80"
	found := func(chain, table, does string) []string {
		return []string{"chain " + chain + " of table " + table + " " + does + endpoint}
	}
	const raw = "prerouting priority -300"
	for name, test := range map[string]struct {
		line string
		want []string
	}{
		"iptables drops it":                     {"iptables-nft -t raw -A PREROUTING -d 169.254.169.254/32 -j DROP", found("PREROUTING", "raw", "drops")},
		"iptables drops its network":            {"iptables-nft -t mangle -A PREROUTING -s 10.0.0.0/8 -d 169.254.0.0/16 -j DROP", found("PREROUTING", "mangle", "drops")},
		"iptables drops a network of odd bits":  {"iptables-nft -t mangle -A PREROUTING -d 169.254.128.0/17 -j DROP", found("PREROUTING", "mangle", "drops")},
		"iptables drops its port":               {"iptables-nft -t raw -A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DROP", found("PREROUTING", "raw", "drops")},
		"nftables drops it":                     {table("ip", raw, "ip daddr 169.254.169.254 tcp dport 80 counter drop"), found("c", "t", "drops")},
		"a table for both families":             {table("inet", raw, "ip daddr 169.254.169.254 drop"), found("c", "t", "drops")},
		"a chain further on":                    {table("inet", raw, "ip daddr 169.254.169.254 jump d; }; chain d { ip daddr 169.254.0.0/16 drop"), found("d", "t", "drops")},
		"NAT that comes first":                  {"nft add table ip t { chain c { type nat hook prerouting priority -120; ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.1:80; }; }", found("c", "t", "leads elsewhere")},
		"a refusal":                             {table("inet", raw, "ip daddr 169.254.169.254 tcp dport 80 reject with tcp reset"), found("c", "t", "refuses")},
		"another question in between":           {table("inet", raw, "ip daddr 169.254.169.254 ct state new tcp dport 80 drop"), found("c", "t", "drops")},
		"a set of addresses":                    {table("inet", raw, "ip daddr { 168.63.129.16, 169.254.169.254 } drop"), found("c", "t", "drops")},
		"a set of networks":                     {table("ip", raw, "ip daddr { 10.0.0.0/8, 169.254.0.0/16, 192.168.0.0/16 } tcp dport { 80, 443 } drop"), found("c", "t", "drops")},
		"networks side by side":                 {table("ip", raw, "ip daddr { 169.254.0.0/17, 169.254.128.0/18, 169.254.192.0/18 } drop"), found("c", "t", "drops")},
		"a set with a name":                     {"nft add table ip t { set s { type ipv4_addr; flags interval; elements = { 169.254.0.0/16 }; }; chain c { type filter hook " + raw + "; ip daddr @s drop; }; }", found("c", "t", "drops")},
		"a set of addresses and ports":          {table("ip", raw, "ip daddr . tcp dport { 169.254.169.254 . 443, 169.254.169.254 . 80 } drop"), found("c", "t", "drops")},
		"a set of networks and ranges":          {table("ip", raw, "ip daddr . tcp dport { 169.254.0.0/16 . 1-1023, 10.0.0.0/8 . 80 } drop"), found("c", "t", "drops")},
		"a map of verdicts":                     {table("ip", raw, "ip daddr vmap { 10.0.0.1 : accept, 169.254.169.254 : drop }"), found("c", "t", "drops")},
		"a map that leads further on":           {table("ip", raw, "ip daddr vmap { 10.0.0.1 : accept, 169.254.0.0/16 : goto d }; }; chain d { ip daddr 169.254.169.254 drop"), found("d", "t", "drops")},
		"a map of links that leads further on":  {table("ip", raw, "iifname vmap { eth1 : jump d, eth2 : jump d }; }; chain d { ip daddr 169.254.169.254 drop"), found("d", "t", "drops")},
		"NAT by a map":                          {"nft add table ip t { chain c { type nat hook prerouting priority -120; dnat to ip daddr map { 169.254.169.254 : 10.0.0.1 }; }; }", found("c", "t", "leads elsewhere")},
		"a set without it":                      {table("ip", raw, "ip daddr { 168.63.129.16, 169.254.169.253, 169.254.169.255 } drop"), nil},
		"a set of networks without it":          {table("ip", raw, "ip daddr { 169.254.0.0/17, 169.254.170.0/24 } drop"), nil},
		"a set with another port":               {table("ip", raw, "ip daddr 169.254.169.254 tcp dport { 443, 8080 } drop"), nil},
		"a set with it and another port":        {table("ip", raw, "ip daddr . tcp dport { 169.254.0.0/16 . 81-1023, 10.0.0.0/8 . 80 } drop"), nil},
		"a set without addresses":               {"nft add table ip t { set s { type ipv4_addr; }; chain c { type filter hook " + raw + "; ip daddr @s drop; }; }", nil},
		"all but a set with it":                 {table("ip", raw, "ip daddr != { 168.63.129.16, 169.254.169.254 } drop"), nil},
		"some pods, by a set":                   {table("ip", raw, "ip saddr . ip daddr { 10.9.9.9 . 169.254.169.254 } drop"), nil},
		"a map that lets it through":            {table("ip", raw, "ip daddr vmap { 10.0.0.1 : drop, 169.254.169.254 : accept }"), nil},
		"a map without it":                      {table("ip", raw, "ip daddr vmap { 10.0.0.1 : drop, 10.0.0.2 : goto d }; }; chain d { ip daddr 169.254.169.254 drop"), nil},
		"NAT by a map without it":               {"nft add table ip t { chain c { type nat hook prerouting priority -120; dnat to ip daddr map { 10.0.0.2 : 10.0.0.1 }; }; }", nil},
		"a range of ports with it":              {table("ip", raw, "ip daddr 169.254.169.254 tcp dport 1-1023 drop"), found("c", "t", "drops")},
		"a chain to which two ways lead":        {table("ip", raw, "ip daddr 169.254.169.254 jump d; jump d; }; chain d { ip daddr 169.254.169.254 drop"), found("d", "t", "drops")},
		"a range of ports without it":           {table("ip", raw, "ip daddr 169.254.169.254 tcp dport 1024-65535 drop"), nil},
		"another port":                          {"iptables-nft -t raw -A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 32526 -j DROP", nil},
		"all but that port":                     {table("ip", raw, "ip daddr 169.254.169.254 tcp dport != 80 drop"), nil},
		"another protocol":                      {"iptables-nft -t raw -A PREROUTING -d 169.254.169.254/32 -p udp -j DROP", nil},
		"another address":                       {"iptables-nft -t raw -A PREROUTING -d 168.63.129.16/32 -j DROP", nil},
		"all addresses but it":                  {"iptables-nft -t raw -A PREROUTING ! -d 169.254.169.254/32 -j DROP", nil},
		"a drop that is not about it":           {table("ip", raw, "iifname eth7 drop"), nil},
		"a rule that lets it through":           {table("ip", raw, "ip daddr 169.254.169.254 accept"), nil},
		"behind the redirect":                   {"iptables-nft -t nat -A PREROUTING -d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1", nil},
		"in forward, where the redirect is not": {"iptables-nft -A FORWARD -d 169.254.169.254/32 -j DROP", nil},
		"in output, where pods are not":         {"iptables-nft -A OUTPUT -d 169.254.169.254/32 -j DROP", nil},
		"in IPv6's":                             {table("ip6", raw, "tcp dport 80 drop"), nil},
		"a chain that nothing leads to":         {table("ip", raw, "accept; }; chain d { ip daddr 169.254.169.254 drop"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := netns.ForTest(t, "node")
			run(t, n, test.line)
			got, err := shadow.Find(n.FD(), netip.MustParseAddrPort("169.254.169.254:80"), -110)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestUnread: a set that cannot be read is an error, and hides no other rule.
func TestUnread(t *testing.T) {
	n := netns.ForTest(t, "node")
	const six = "ip daddr . tcp dport . ip saddr . tcp sport . ip daddr . tcp sport" // more than are understood
	run(t, n, "nft add table ip t { set s { type ipv4_addr . inet_service . ipv4_addr . inet_service . ipv4_addr . inet_service; };"+
		" chain a { type filter hook prerouting priority -300; "+six+" @s drop; };"+
		" chain b { type filter hook prerouting priority -299; ip daddr 169.254.169.254 drop; }; }")
	got, err := shadow.Find(n.FD(), netip.MustParseAddrPort("169.254.169.254:80"), -110)
	if err == nil || !strings.Contains(err.Error(), "reading set s of table t") {
		t.Errorf("got error %v, want one that names the set", err)
	}
	if diff := cmp.Diff([]string{"chain b of table t drops what pods send to 169.254.169.254:80"}, got); diff != "" {
		t.Error(diff)
	}
}
