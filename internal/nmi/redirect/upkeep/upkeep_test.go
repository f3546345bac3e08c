package upkeep_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/upkeep"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// program is the real one, as make build leaves it.
func program() string { return filepath.Join(env.Root(), "bin", "nmi") }

const metadata = "169.254.169.254:80"

// node is a namespace with a pod, and a way to the metadata address that ends in
// the next namespace.
type node struct {
	*testing.T
	ns, pod *netns.NS
}

func newNode(t *testing.T) node {
	t.Helper()
	n := node{t, netns.ForTest(t, "node"), netns.ForTest(t, "pod")}
	n.must(n.ns.SetSysctl("net.ipv4.ip_forward", "1"))
	n.must(netns.Connect(
		netns.End{NS: n.ns, Link: "vethpod", Addr: netip.MustParsePrefix("10.244.0.1/30")},
		netns.End{NS: n.pod, Link: "eth0", Addr: netip.MustParsePrefix("10.244.0.2/30")}))
	azure := netns.ForTest(t, "azure")
	n.must(netns.Connect(
		netns.End{NS: n.ns, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.4/24")},
		netns.End{NS: azure, Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.1/24")}))
	n.must(n.ns.SetRoute(netip.MustParsePrefix("169.254.169.254/32"), netip.MustParseAddr("10.0.0.1")))
	n.must(n.pod.SetRoute(netip.MustParsePrefix("169.254.169.254/32"), netip.MustParseAddr("10.244.0.1")))
	return n
}

func (n node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

// command is a program of the node's.
func (n node) command(program string, args ...string) *exec.Cmd {
	n.Helper()
	return exec.CommandContext(n.Context(), program, args...)
}

// nmi runs a command to its end.
func (n node) nmi(args ...string) (code int, stdout, stderr string) {
	n.Helper()
	return n.run(program(), args...)
}

func (n node) run(program string, args ...string) (code int, stdout, stderr string) {
	n.Helper()
	cmd := n.command(program, args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	n.must(n.ns.Start(cmd))
	_ = cmd.Wait() // its exit code says it
	return cmd.ProcessState.ExitCode(), out.String(), complaints.String()
}

// says fails the test unless a command ends with the code and says the words.
func (n node) says(code int, words string, args ...string) {
	n.Helper()
	got, stdout, stderr := n.nmi(args...)
	if got != code || !strings.Contains(stdout+stderr, words) {
		n.Errorf("nmi %s: exit code %d, stdout %q, stderr %q, want %d and %q", strings.Join(args, " "), got, stdout, stderr, code, words)
	}
}

// serve answers connections with the name of the server.
func (n node) serve(name string) net.Listener {
	n.Helper()
	return n.serveAt("127.0.0.1:2579", name)
}

func (n node) serveAt(address, name string) net.Listener {
	n.Helper()
	l, err := n.ns.Listen(n.Context(), "tcp4", address)
	n.must(err)
	n.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			c.Close()
		}
	}()
	return l
}

// ask returns who answers the pod, or why nobody does.
func (n node) ask() string {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 10*time.Second)
	defer cancel()
	c, err := n.pod.DialContext(ctx, "tcp4", metadata)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	n.must(err)
	return string(text)
}

func (n node) hears(want string) {
	n.Helper()
	if got := n.ask(); !strings.Contains(got, want) {
		n.Errorf("the pod hears %q, want %q", got, want)
	}
}

func (n node) tables() int {
	n.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(n.ns.FD()))
	n.must(err)
	tables, err := conn.ListTables()
	n.must(err)
	return len(tables)
}

// agent is the datapath of an NMI that runs.
func (n node) agent() *redirect.NFTables {
	n.Helper()
	return n.agentOf(redirect.Config{NetNS: n.ns.FD(), Bound: true})
}

func (n node) agentOf(config redirect.Config) *redirect.NFTables {
	n.Helper()
	d, err := redirect.New(config)
	n.must(err)
	_, err = d.Ensure(n.Context())
	n.must(err)
	n.Cleanup(func() { _, _ = d.Delete(context.WithoutCancel(n.Context())) })
	return d
}

// oldAgent does what AAD Pod Identity's agent does when it starts and when it ends.
func (n node) oldAgent(iptables string) (end func()) {
	n.Helper()
	do := func(rules ...string) {
		n.Helper()
		for _, rule := range rules {
			if code, _, stderr := n.run(iptables, strings.Fields("-t nat "+rule)...); code != 0 {
				n.Fatalf("%s %s: %s", iptables, rule, stderr)
			}
		}
	}
	do("-N aad-metadata", "-I PREROUTING 1 -j aad-metadata",
		"-A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579",
		"-A aad-metadata -j RETURN")
	return func() { do("-D PREROUTING -j aad-metadata", "-F aad-metadata", "-X aad-metadata") }
}

func TestCleanup(t *testing.T) {
	for target, test := range map[string]struct{ address, links string }{
		"loopback": {"127.0.0.1:2579", "switched route_localnet off on 2 links\n"},
		"link":     {"169.254.255.79:2579", "removed link aad-pod-id0\n"},
	} {
		t.Run(target, func(t *testing.T) {
			n := newNode(t)
			flag := "--redirect-target=" + target
			n.says(command.CodeDone, "nothing was there", "cleanup", flag)
			n.says(command.CodeDone, "in place: what pods send to 169.254.169.254:80 goes to "+test.address, "redirect-only", flag)
			n.serveAt(test.address, "nmi")
			n.hears("nmi")
			n.oldAgent("iptables-nft")
			code, stdout, stderr := n.nmi("cleanup", flag)
			want := "removed table ip aad-pod-identity\nremoved table ip aad-pod-identity-fence\nremoved table ip aad-pod-identity-fence-spare\n" + test.links +
				"forgot 1 connections to NMI\nremoved chain aad-metadata of AAD Pod Identity from table ip nat\n"
			if code != command.CodeDone || stdout != want || stderr != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			n.says(command.CodeDone, "nothing was there", "cleanup", flag)
		})
	}
}

// TestCleanupOfAnotherTarget: what is left goes though the command line does not
// say how the agent was started.
func TestCleanupOfAnotherTarget(t *testing.T) {
	n := newNode(t)
	n.says(command.CodeDone, "in place", "redirect-only")
	n.says(command.CodeDone, "switched route_localnet off on 2 links", "cleanup", "--redirect-target=link")
	n.says(command.CodeDone, "in place", "redirect-only", "--redirect-target=link")
	n.says(command.CodeDone, "removed link aad-pod-id0", "cleanup")
	n.says(command.CodeDone, "nothing was there", "cleanup")
}

func TestCleanupReportsLegacyIPTables(t *testing.T) {
	n := newNode(t)
	end := n.oldAgent("iptables-legacy")
	n.says(command.CodeDone, "in place", "redirect-only")
	n.says(command.CodeLeft, "  iptables-legacy -w -t nat -D PREROUTING -j aad-metadata\n", "cleanup")
	n.says(command.CodeLeft, "legacy iptables has the chain", "cleanup")
	if got := n.tables(); got != 0 {
		t.Errorf("%d tables of nftables are left", got)
	}
	end()
	n.says(command.CodeDone, "nothing was there", "cleanup")
}

func TestWhileAnAgentRuns(t *testing.T) {
	n := newNode(t)
	n.serve("nmi")
	d := n.agent()
	n.says(command.CodeError, "delete its DaemonSet first", "cleanup")
	n.says(command.CodeDone, "NMI runs on this node", "redirect-only")
	n.hears("nmi")
	if err := d.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestUpgrade goes the way of a node from the old agent to ours, and never lets
// its pod through.
func TestUpgrade(t *testing.T) {
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(iptables, func(t *testing.T) {
			n := newNode(t)
			n.must(n.ns.SetSysctl("net.ipv4.conf.all.route_localnet", "1")) // as the old agent needs it
			end, old := n.oldAgent(iptables), n.serve("old")
			n.hears("old")
			n.says(command.CodeDone, "in place", "redirect-only")
			n.hears("old")
			end()
			n.hears("old") // it drains, and is led to by the new rules
			old.Close()
			n.hears("refused")
			n.serve("new")
			n.agent()
			n.hears("new")
		})
	}
}

// TestRollback: the old agent is not kept from pods by what ours has left.
func TestRollback(t *testing.T) {
	for name, config := range map[string]redirect.Config{
		"from loopback": {Bound: true, Target: netip.MustParseAddrPort("127.0.0.1:2579")},
		"from a link":   {Bound: true, Target: netip.MustParseAddrPort("169.254.255.79:2579"), Link: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.must(n.ns.SetSysctl("net.ipv4.conf.all.route_localnet", "1"))
			config.NetNS = n.ns.FD()
			d := n.agentOf(config)
			nmi := n.serveAt(config.Target.String(), "nmi")
			n.hears("nmi")
			nmi.Close()
			n.must(d.Refuse())
			n.hears("refused")
			n.oldAgent("iptables-nft")
			n.serve("old")
			n.hears("old")
		})
	}
}

func TestRedirectOnlyKeeps(t *testing.T) {
	n := newNode(t)
	cmd := n.command(program(), "redirect-only", "--keep")
	out, err := cmd.StdoutPipe()
	n.must(err)
	n.must(n.ns.Start(cmd))
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	next := func(words string) {
		t.Helper()
		select {
		case line := <-lines:
			if !strings.Contains(line, words) {
				t.Fatalf("got %q, want %q", line, words)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("waited in vain for %q", words)
		}
	}
	repaired := func() {
		t.Helper()
		for n.ask() != "nmi" { // one line for each table at most
			next("put right: ")
		}
	}
	next("in place")
	n.serve("nmi")
	n.hears("nmi")
	conn, err := nftables.New(nftables.WithNetNSFd(n.ns.FD()))
	n.must(err)
	conn.FlushRuleset()
	n.must(conn.Flush())
	repaired()

	d := n.agent() // takes over
	n.hears("nmi")
	if _, err := d.Delete(t.Context()); err != nil { // as at its end
		t.Error(err)
	}
	repaired()

	n.must(cmd.Process.Signal(syscall.SIGTERM))
	for range lines { // up to its end
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	n.hears("nmi") // the rules stay
}

func TestCommandLines(t *testing.T) {
	for name, test := range map[string]struct {
		args  []string
		code  int
		words string
	}{
		"help":                         {[]string{"cleanup", "--help"}, command.CodeDone, "Exit code: 0 if nothing is left"},
		"help of the other":            {[]string{"redirect-only", "--help"}, command.CodeDone, "--keep"},
		"a flag of the agent's":        {[]string{"cleanup", "--node=a"}, command.CodeUsage, "unknown flag: --node"},
		"an argument":                  {[]string{"cleanup", "all"}, command.CodeUsage, `unknown argument "all"`},
		"an address that is none":      {[]string{"cleanup", "--metadata-ip=imds"}, command.CodeUsage, "--metadata-ip"},
		"a port that is none":          {[]string{"redirect-only", "--nmi-port=http"}, command.CodeUsage, "--nmi-port"},
		"a port too far":               {[]string{"redirect-only", "--nmi-port=65536"}, command.CodeUsage, "--nmi-port"},
		"a target that is none":        {[]string{"cleanup", "--redirect-target=dummy"}, command.CodeUsage, `--redirect-target is "dummy": want loopback or link`},
		"a link that cannot be":        {[]string{"redirect-only", "--redirect-target=link", "--nmi-listen-address=0.0.0.0"}, command.CodeUsage, "want one address of this node"},
		"an address of another family": {[]string{"redirect-only", "--nmi-listen-address=::1"}, command.CodeUsage, "want an IPv4 address"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code, known := upkeep.Execute(t.Context(), test.args, &stdout, &stderr)
			if code != test.code || !known || stdout.String() != "" || !strings.Contains(stderr.String(), test.words) {
				t.Errorf("exit code %d, known %t, stdout %q, stderr %q", code, known, stdout.String(), stderr.String())
			}
		})
	}
	for _, args := range [][]string{nil, {"--node=a"}, {"clean"}, {"--nmi-port=1", "cleanup"}} {
		if code, known := upkeep.Execute(t.Context(), args, io.Discard, io.Discard); known {
			t.Errorf("%q is a command, exit code %d", args, code)
		}
	}
	if summary := upkeep.Summary(); !strings.Contains(summary, "nmi cleanup") || !strings.Contains(summary, "nmi redirect-only") {
		t.Errorf("the summary is %q", summary)
	}
}
