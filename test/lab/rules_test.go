//go:build e2e

package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// TestRulesFlushed: somebody with root on the node removes rules of NMI's while
// NMI runs. The table that leads pods to NMI belongs to its process: the kernel
// lets nobody else change it. The two fences outlive NMI, and so belong to nobody;
// while they are away, the other table keeps pods out, and the same rules are there
// again within a second.
func TestRulesFlushed(t *testing.T) {
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "asker")
	bind(t, namespace, "asker", identity)
	for _, node := range disrupted() {
		t.Run(node, func(t *testing.T) {
			_, inside, asking := runAsker(t, namespace, node, "asker", identity)
			w := tapWire(t, node)
			before := agentRules(t, node)
			for _, how := range []string{"delete", "flush"} {
				for _, what := range []string{how + " table ip " + mainTable, how + " table ip " + fenceTable + "; " + how + " table ip " + mainTable} {
					if out, err := inNode(t.Context(), node, "nft", what); err == nil || !strings.Contains(out, "not permitted") {
						t.Errorf("nft %s: %v, %s", what, err, out)
					}
				}
				if after := agentRules(t, node); after != before {
					t.Errorf("what was refused has changed the rules to %s", after)
				}
				for _, fences := range [][]string{{fenceTable}, {spareTable}, {fenceTable, spareTable}} {
					removeFences(t, node, inside, asking, removal{how, fences})
					w.wantSilence(t)
				}
			}
			probing(t, inside, func() { asking.wantToken(t) })
			w.wantSilence(t)
		})
	}
}

// removal is what is done to tables, all at once: delete or flush.
type removal struct {
	how    string
	tables []string
}

// removeFences does it on a node, and waits until the rules are what they were,
// while a pod asks for tokens and sends a datagram to the metadata address each
// millisecond. It fails the test if that takes more than a second by the
// kernel's own account.
func removeFences(t *testing.T, node string, inside *netns.NS, asking *asker, r removal) {
	t.Helper()
	before := agentRules(t, node)
	replaced := watchTables(t, node, r.tables)
	command := r.how + " table ip " + strings.Join(r.tables, "; "+r.how+" table ip ")
	var sent int
	asking.during(t, func() {
		sent = probing(t, inside, func() {
			onNode(t, node, "nft", command)
			awaitRules(t, node, before)
		})
	})
	away := replaced(t)
	t.Logf("nft %s: replaced after %s; the pod sent %d datagrams meanwhile", command, away.Round(100*time.Microsecond), sent)
	if away > time.Second {
		t.Errorf("nft %s: replaced after %s, want a second at most", command, away)
	}
}

// watchTables listens to what the kernel announces of tables of a node. The
// function that it returns waits until each has been made anew, and returns how
// long after the first change that was.
func watchTables(t *testing.T, node string, tables []string) func(*testing.T) time.Duration {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: enter(t, node).FD()})
	must(t, err)
	must(t, conn.SetReadBuffer(1<<20)) // kube-proxy's changes are announced, too
	must(t, conn.JoinGroup(unix.NFNLGRP_NFTABLES))
	must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	type outcome struct {
		took time.Duration
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		defer conn.Close()
		took, err := replacement(conn, slices.Clone(tables))
		ended <- outcome{took, err}
	}()
	return func(t *testing.T) time.Duration {
		t.Helper()
		o := <-ended
		must(t, o.err)
		return o.took
	}
}

// replacement receives until each table has been made anew.
func replacement(conn *netlink.Conn, tables []string) (time.Duration, error) {
	const kind = 0x00ff
	var first time.Time
	for {
		messages, err := conn.Receive()
		if err != nil {
			return 0, fmt.Errorf("waiting for tables %s: %w", strings.Join(tables, ", "), err)
		}
		for _, m := range messages {
			i := slices.Index(tables, tableOf(m))
			if i < 0 {
				continue
			}
			if first.IsZero() {
				first = time.Now()
			}
			if m.Header.Type&kind == unix.NFT_MSG_NEWTABLE {
				tables = slices.Delete(tables, i, i+1)
			}
		}
		if len(tables) == 0 {
			return time.Since(first), nil
		}
	}
}

// tableOf returns the name of the table that an announcement is about: behind a
// header of four bytes, the first attribute of all that is announced.
func tableOf(m netlink.Message) string {
	if len(m.Data) < 4 {
		return ""
	}
	attributes, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil || !attributes.Next() || attributes.Type() != unix.NFTA_TABLE_NAME {
		return ""
	}
	return attributes.String()
}

// NMI's nftables tables.
const (
	mainTable  = "aad-pod-identity"
	fenceTable = "aad-pod-identity-fence"
	spareTable = "aad-pod-identity-fence-spare"
)

func agentTables() []string { return []string{mainTable, fenceTable, spareTable} }

func agentRules(t *testing.T, node string) string {
	t.Helper()
	return onNode(t, node, listRules()...)
}

// listRules is a command of a node that prints all of NMI's rules, or fails.
func listRules() []string {
	return append([]string{"sh", "-c", `for t; do nft --stateless list table ip "$t" || exit; done`, "sh"}, agentTables()...)
}

// awaitRules asks for the rules, for thirty seconds at most, until they are what
// they were.
func awaitRules(t *testing.T, node, before string) {
	t.Helper()
	var now string
	for start := time.Now(); time.Since(start) < 30*time.Second; {
		var err error
		if now, err = inNode(t.Context(), node, listRules()...); err == nil && now == before { // no table is an error
			return
		}
	}
	t.Fatalf("the rules of %s did not come back; they are %s", node, now)
}

// probing has a pod send a datagram to the metadata address each millisecond, for
// 30 s at most, while f runs. It returns how many were sent: at least ten.
func probing(t *testing.T, inside *netns.NS, f func()) int {
	t.Helper()
	conn, err := inside.DialContext(t.Context(), "udp4", netip.AddrPortFrom(metadataAddress(), 9).String())
	must(t, err)
	defer conn.Close()
	ctx, stop := context.WithCancel(t.Context())
	sent := make(chan int)
	go func() {
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		n := 0
		for ; n < 30_000 && (n < 10 || ctx.Err() == nil); n++ {
			_, _ = conn.Write([]byte{0}) // a refusal is the answer to an earlier one
			<-pace.C
		}
		sent <- n
	}()
	defer stop()
	f()
	stop()
	return <-sent
}
