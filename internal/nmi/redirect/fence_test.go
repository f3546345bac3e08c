package redirect_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
)

func deleteTable(c *nftables.Conn, table *nftables.Table) { c.DelTable(table) }
func flushTable(c *nftables.Conn, table *nftables.Table)  { c.FlushTable(table) }

// TestAnyTableKeepsPodsOut has nobody put back what is taken away: whichever
// tables are gone but one, no packet of a pod comes to the metadata address, and none of
// what the drops are for is open.
func TestAnyTableKeepsPodsOut(t *testing.T) {
	for _, taken := range []struct {
		table, how string
		do         func(*nftables.Conn, *nftables.Table)
	}{
		{mainTable, "deleted", deleteTable}, {mainTable, "flushed", flushTable},
		{fenceTable, "deleted", deleteTable}, {fenceTable, "flushed", flushTable},
		{spareTable, "deleted", deleteTable}, {spareTable, "flushed", flushTable},
	} {
		t.Run(taken.table+" "+taken.how, func(t *testing.T) {
			eachTarget(t, func(w *world) {
				w.ensured()
				w.serve(w.node, w.target, "nmi")
				w.serve(w.node, "127.0.0.1:8080", "loopback")
				w.hears(w.pod, metadata, "nmi hears "+podIP)
				w.damageTable(taken.table, taken.do)

				if taken.table == mainTable {
					w.refused(w.pod, metadata)
				} else {
					w.hears(w.pod, metadata, "nmi hears "+podIP)
				}
				w.silent(w.pod, "169.254.169.254:443")
				w.sendDatagrams(10)
				w.noLeaks()
				w.hears(w.node, metadata, "azure hears 10.0.0.4")
				w.openPodToLoopback()
				w.silent(w.pod, "127.0.0.1:8080")
			})
		})
	}
}

// TestARivalWithoutTheRedirect: a pod that somebody else's NAT leads to another
// host is not let there, though nothing of ours leads it elsewhere.
func TestARivalWithoutTheRedirect(t *testing.T) {
	w := newRivalry(t)
	w.ensured()
	w.divert("rival", -100, elsewhere)
	w.damage(deleteTable)
	w.silent(w.pod, metadata)
	w.damageTable(fenceTable, deleteTable)
	w.silent(w.pod, metadata)
	w.damageTable(spareTable, deleteTable)
	w.hears(w.pod, metadata, "rival hears "+podIP) // so the rival is one
}

// TestOnlyTheLossOfAllOpens says what remains: it shows that the tests above
// would see a leak.
func TestOnlyTheLossOfAllOpens(t *testing.T) {
	w := newWorld(t)
	d := w.ensured()
	w.serve(w.node, w.target, "nmi")
	w.damage(func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	w.sendDatagrams(1)
	if w.leaked() != 1 {
		t.Errorf("%d packets reached azure, want the datagram", w.leaked())
	}
	w.hears(w.pod, metadata, "azure hears "+podIP)
	must2(d.Ensure(t.Context()))(w)
	before := w.leaked()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
	w.sendDatagrams(10)
	if after := w.leaked(); after != before {
		t.Errorf("%d packets leaked after the repair", after-before)
	}

	w.serve(w.node, "127.0.0.1:8080", "loopback")
	w.openPodToLoopback()
	w.silent(w.pod, "127.0.0.1:8080")
	w.damage(func(c *nftables.Conn, _ *nftables.Table) { c.FlushRuleset() })
	w.hears(w.pod, "127.0.0.1:8080", "loopback hears "+podIP)
}

// TestNoPacketPassesARepair takes tables away again and again, from under a pod
// that sends all the while, and has the keeper put them back.
func TestNoPacketPassesARepair(t *testing.T) {
	eachTarget(t, func(w *world) {
		k := w.keep(w.datapath())
		w.serve(w.node, w.target, "nmi")
		ctx, stop := context.WithCancel(w.Context())
		sent := make(chan int)
		go func() { sent <- w.flood(ctx) }()
		defer stop()
		const rounds = 10
		for range rounds {
			for _, table := range []string{mainTable, fenceTable, spareTable} {
				for _, do := range []func(*nftables.Conn, *nftables.Table){deleteTable, flushTable} {
					w.damageTable(table, do)
					k.next("the repair of "+table, func(c redirect.Change) bool { return c.Rules })
				}
			}
		}
		stop()
		if n := <-sent; n < rounds {
			w.Errorf("only %d packets were sent: this test proves nothing", n)
		}
		w.noLeaks()
		w.hears(w.pod, metadata, "nmi hears "+podIP)
	})
}

// flood sends a datagram to the metadata endpoint each millisecond, and a
// request for a connection each ten, until ctx ends. It returns how many
// datagrams it sent.
func (w *world) flood(ctx context.Context) (sent int) {
	err := w.pod.Do(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "udp4", metadata)
		if err != nil {
			return err
		}
		defer conn.Close()
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			<-pace.C
			_, _ = conn.Write([]byte("x")) // a refusal is the answer to an earlier one
			sent++
			if sent%10 == 0 {
				dialer := net.Dialer{Timeout: 5 * time.Millisecond} // too short for a second packet
				if c, err := dialer.DialContext(ctx, "tcp4", metadata); err == nil {
					c.Close()
				}
			}
		}
		return nil
	})
	if err != nil {
		w.Error(err)
	}
	return sent
}

// sendDatagrams has the pod send to the metadata address, and something behind
// it whose arrival shows that all of it has been dealt with.
func (w *world) sendDatagrams(n int) {
	w.Helper()
	conn := must2(w.pod.DialContext(w.Context(), "udp4", metadata))(w)
	defer conn.Close()
	for range n {
		must2(conn.Write([]byte("x")))(w)
	}
	behind := must2(w.azure.ListenPacket(w.Context(), "udp4", "10.0.0.1:9"))(w)
	defer behind.Close()
	last := must2(w.pod.DialContext(w.Context(), "udp4", "10.0.0.1:9"))(w)
	defer last.Close()
	must2(last.Write([]byte("x")))(w)
	w.must(behind.SetReadDeadline(time.Now().Add(10 * time.Second)))
	_, _, err := behind.ReadFrom(make([]byte, 1))
	w.must(err)
}
