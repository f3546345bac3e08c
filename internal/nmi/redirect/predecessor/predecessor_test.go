package predecessor_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/predecessor"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// node is a namespace with Debian's iptables.
type node struct {
	*testing.T
	ns *netns.NS
}

func newNode(t *testing.T) node { return node{t, netns.ForTest(t, "node")} }

// run enters a command line on the node and returns what it prints.
func (n node) run(line string) string {
	n.Helper()
	return n.feed("", line)
}

// feed is run with an input.
func (n node) feed(input, line string) string {
	n.Helper()
	out, err := n.try(input, line)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

func (n node) try(input, line string) (string, error) {
	fields := strings.Fields(line)
	program, err := exec.LookPath(fields[0])
	if err != nil {
		return "", fmt.Errorf("%w: run make debian", err)
	}
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(n.Context(), program, fields[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &complaints
	if err := n.ns.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", line, err, complaints.String())
	}
	return out.String(), nil
}

// rules returns the rules of the NAT table in the order that iptables prints.
func (n node) rules(iptables string) []string {
	n.Helper()
	return strings.Split(strings.TrimSpace(n.run(iptables+" -t nat -S")), "\n")
}

// crash leaves what an agent of v1.8.17 leaves that had no time to clean up,
// among rules of others.
func (n node) crash(iptables string) {
	n.Helper()
	for _, rule := range []string{
		"-N aad-metadata",
		"-I PREROUTING 1 -j aad-metadata",
		"-A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579",
		"-A aad-metadata -j RETURN",
	} {
		n.run(iptables + " -t nat " + rule)
	}
}

// others adds rules as kube-proxy and a CNI have them.
func (n node) others(iptables string) {
	n.Helper()
	for _, rule := range []string{
		"-N KUBE-SERVICES",
		"-N KUBE-SVC-1",
		"-A PREROUTING -m comment --comment kubernetes -j KUBE-SERVICES",
		"-A OUTPUT -m comment --comment kubernetes -j KUBE-SERVICES",
		"-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment default/kubernetes -m tcp --dport 443 -j KUBE-SVC-1",
		"-A KUBE-SVC-1 -p tcp -m statistic --mode random --probability 0.5 -m tcp -j DNAT --to-destination 10.0.0.7:6443",
		"-A KUBE-SVC-1 -p tcp -m tcp -j DNAT --to-destination 10.0.0.8:6443",
		"-A POSTROUTING -s 10.244.0.0/16 ! -d 10.0.0.0/8 -m addrtype ! --dst-type LOCAL -j MASQUERADE",
	} {
		n.run(iptables + " -t nat " + rule)
	}
}

func (n node) remove(want predecessor.Found) {
	n.Helper()
	got, err := predecessor.Remove(n.ns.FD())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		n.Errorf("%v %s", err, diff)
	}
}

func TestNothingIsThere(t *testing.T) {
	n := newNode(t)
	n.remove(predecessor.Found{})
	// Looking makes no table.
	if names := n.run("cat /proc/net/ip_tables_names"); names != "" {
		t.Errorf("legacy iptables has the tables %q now", names)
	}
}

func TestTheChainInNFTablesIsRemoved(t *testing.T) {
	const iptables = "iptables-nft"
	for name, crashes := range map[string]func(node){
		"once":                      func(n node) { n.crash(iptables) },
		"with a second jump to it":  func(n node) { n.crash(iptables); n.run(iptables + " -t nat -A PREROUTING -j aad-metadata") },
		"with a rule of somebody's": func(n node) { n.crash(iptables); n.run(iptables + " -t nat -I aad-metadata -s 10.0.0.9/32 -j RETURN") },
		"without a jump to it":      func(n node) { n.run(iptables + " -t nat -N aad-metadata") },
		"without rules in it": func(n node) {
			n.run(iptables + " -t nat -N aad-metadata")
			n.run(iptables + " -t nat -A PREROUTING -j aad-metadata")
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.others(iptables)
			before := n.rules(iptables)
			crashes(n)
			n.remove(predecessor.Found{Removed: true})
			if diff := cmp.Diff(before, n.rules(iptables)); diff != "" {
				t.Error(diff)
			}
			n.remove(predecessor.Found{})
		})
	}
}

func TestTheChainInLegacyIPTablesIsReported(t *testing.T) {
	const iptables = "iptables-legacy"
	n := newNode(t)
	n.others(iptables)
	before := n.rules(iptables)
	n.remove(predecessor.Found{})
	n.crash(iptables)
	with := n.rules(iptables)
	n.remove(predecessor.Found{Legacy: true})
	if diff := cmp.Diff(with, n.rules(iptables)); diff != "" {
		t.Errorf("looking at the rules changed them: %s", diff)
	}
	for _, command := range predecessor.Commands() {
		n.run(command)
	}
	if diff := cmp.Diff(before, n.rules(iptables)); diff != "" {
		t.Errorf("after the commands that are recommended: %s", diff)
	}
	n.remove(predecessor.Found{})
}

func TestBothAtOnce(t *testing.T) {
	n := newNode(t)
	n.crash("iptables-legacy")
	n.crash("iptables-nft")
	n.remove(predecessor.Found{Removed: true, Legacy: true})
}

// TestALegacyTableOfALargeNode has more rules than fit a page or two.
func TestALegacyTableOfALargeNode(t *testing.T) {
	n := newNode(t)
	n.crash("iptables-legacy")
	var restore strings.Builder
	restore.WriteString("*nat\n")
	for i := range 3000 {
		fmt.Fprintf(&restore, "-A POSTROUTING -s 10.%d.%d.0/24 -j MASQUERADE\n", i/256, i%256)
	}
	restore.WriteString("COMMIT\n")
	n.feed(restore.String(), "iptables-legacy-restore --noflush")
	n.remove(predecessor.Found{Legacy: true})
}

// TestRulesThatChangeMeanwhile changes them while they are looked at.
func TestRulesThatChangeMeanwhile(t *testing.T) {
	n := newNode(t)
	n.others("iptables-nft")
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			for _, what := range []string{"-A", "-D"} {
				if _, err := n.try("", "iptables-nft -t nat "+what+" KUBE-SVC-1 -j RETURN"); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for range 5 {
		n.crash("iptables-nft")
		n.remove(predecessor.Found{Removed: true})
	}
	stop.Store(true)
	<-ended
}

func TestWithoutTheRight(t *testing.T) {
	n := newNode(t)
	n.crash("iptables-nft")
	n.crash("iptables-legacy")
	err := n.ns.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var before, after [2]unix.CapUserData
		if err := unix.Capget(&header, &before[0]); err != nil {
			return err
		}
		after = before
		after[unix.CAP_NET_ADMIN/32].Effective &^= 1 << (unix.CAP_NET_ADMIN % 32)
		if err := unix.Capset(&header, &after[0]); err != nil {
			return err
		}
		got, err := predecessor.Remove(0)
		if err == nil || !strings.Contains(err.Error(), "not permitted") || got != (predecessor.Found{}) {
			t.Errorf("got %+v, %v, want what is not permitted", got, err)
		}
		return unix.Capset(&header, &before[0])
	})
	if err != nil {
		t.Error(err)
	}
}
