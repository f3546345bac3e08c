package redirect

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestConfigDefaults(t *testing.T) {
	got, err := Config{UID: 7}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Metadata: netip.MustParseAddrPort("169.254.169.254:80"),
		Target:   netip.MustParseAddrPort("127.0.0.1:2579"),
		UID:      7,
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
	again, err := got.withDefaults()
	if err != nil || again != got {
		t.Errorf("a config with everything set becomes %+v, %v", again, err)
	}
}

func TestListenAddress(t *testing.T) {
	for name, test := range map[string]struct {
		given string
		link  bool
		want  string
	}{
		"the default":              {"127.0.0.1", false, "127.0.0.1"},
		"a link's":                 {"127.0.0.1", true, "169.254.255.79"},
		"another one, of a link":   {"169.254.7.9", true, "169.254.7.9"},
		"another one":              {"10.0.0.4", false, "10.0.0.4"},
		"one that cannot be":       {"0.0.0.0", true, "0.0.0.0"},
		"one that nobody can read": {"x", true, "x"},
	} {
		if got := ListenAddress(test.given, test.link); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
	c, err := Config{Link: true}.withDefaults()
	if err != nil || c.Target.String() != "169.254.255.79:2579" || !LinkAddress().IsLinkLocalUnicast() {
		t.Errorf("by default a link has %s, %v", c.Target, err)
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		metadata, target string
		link             bool
		netns            int
		words            string
	}{
		"metadata over IPv6":               {metadata: "[fd00::1]:80", words: "metadata endpoint [fd00::1]:80: want an IPv4 address"},
		"metadata mapped into IPv6":        {metadata: "[::ffff:169.254.169.254]:80", words: "want an IPv4 address"},
		"metadata without a port":          {metadata: "169.254.169.254:0", words: "want a port"},
		"metadata on loopback":             {metadata: "127.0.0.1:80", words: "want the unicast address that pods send to"},
		"metadata anywhere":                {metadata: "0.0.0.0:80", words: "want the unicast address that pods send to"},
		"metadata for many":                {metadata: "224.0.0.1:80", words: "want the unicast address that pods send to"},
		"target over IPv6":                 {target: "[::1]:2579", words: "redirect target [::1]:2579: want an IPv4 address of this node"},
		"target without a port":            {target: "127.0.0.1:0", words: "want a port"},
		"target on all addresses":          {target: "0.0.0.0:2579", words: "want one address of this node that connections can be led to, such as 127.0.0.1"},
		"target for many":                  {target: "224.0.0.1:2579", words: "want a unicast address"},
		"target that is the metadata":      {target: "169.254.169.254:2579", words: "want another address than the metadata service's"},
		"a link's, on loopback":            {target: "127.0.0.1:2579", link: true, words: "want a link-local address for a link of NMI's own, such as 169.254.255.79"},
		"a link's, of somebody else's":     {target: "10.0.0.4:2579", link: true, words: "want a link-local address"},
		"a link's, that is the metadata":   {target: "169.254.169.254:2579", link: true, words: "want another address than the metadata service's"},
		"namespace that is no descriptor":  {netns: -1, words: "network namespace -1: want an open file descriptor"},
		"target that is metadata's port's": {metadata: "10.0.0.1:80", target: "10.0.0.1:2579", words: "want another address"},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{NetNS: test.netns, Link: test.link}
			if test.metadata != "" {
				config.Metadata = netip.MustParseAddrPort(test.metadata)
			}
			if test.target != "" {
				config.Target = netip.MustParseAddrPort(test.target)
			}
			_, err := New(config)
			if err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want words: %s", err, test.words)
			}
		})
	}
}
