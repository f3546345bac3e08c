package redirect_test

import (
	"errors"
	"io"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
)

// bound returns a datapath of the node that ends with its owner.
func (w *world) bound() *redirect.NFTables {
	w.Helper()
	d := must2(redirect.New(redirect.Config{NetNS: w.node.FD(), UID: uint32(unix.Geteuid()), Link: w.link, Bound: true}))(w)
	w.Cleanup(func() { w.must(d.End()) })
	return d
}

// nmi is an agent as far as the node's rules see it: it listens, and then leads
// pods to itself. What it returns ends it as a crash does.
func (w *world) nmi() (d *redirect.NFTables, end func()) {
	w.Helper()
	w.prepared()
	listener := w.serve(w.node, w.target, "nmi")
	d = w.bound()
	must2(d.Ensure(w.Context()))(w)
	w.must(d.Verify(w.Context()))
	return d, func() {
		w.must(d.End())
		listener.Close()
	}
}

// TestNobodyAnswersWhileNMIIsAway: an impostor with root's own user takes NMI's
// port as soon as it is free, and no pod is led there.
func TestNobodyAnswersWhileNMIIsAway(t *testing.T) {
	eachTarget(t, func(w *world) {
		for range 3 {
			_, end := w.nmi()
			w.hears(w.pod, metadata, "nmi hears "+podIP)
			end()
			impostor := w.serve(w.node, w.target, "impostor")
			w.hears(w.node, w.target, "impostor hears "+w.targetIP()) // so it is one
			w.refused(w.pod, metadata)
			w.silent(w.pod, "169.254.169.254:443")
			impostor.Close()
		}
		w.noLeaks()
	})
}

// TestARedirectThatStaysLeadsToAnybodyOfItsUser is why the agent binds it.
func TestARedirectThatStaysLeadsToAnybodyOfItsUser(t *testing.T) {
	w := newWorld(t)
	w.ensured()
	w.serve(w.node, w.target, "impostor")
	w.hears(w.pod, metadata, "impostor hears "+podIP)
}

func TestNobodyElseChangesABoundRedirect(t *testing.T) {
	for name, harm := range ruleDamages() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d, _ := w.nmi()
			conn := must2(nftables.New(nftables.WithNetNSFd(w.node.FD())))(w)
			harm.do(conn, &nftables.Table{Name: mainTable, Family: nftables.TableFamilyIPv4})
			if err := conn.Flush(); err != nil && !errors.Is(err, unix.EPERM) {
				t.Error(err)
			}
			w.hears(w.pod, metadata, "nmi hears "+podIP)
			w.sendDatagrams(3)
			w.noLeaks()
			must2(d.Ensure(t.Context()))(w) // the fence, after a flush of everything
			w.must(d.Verify(t.Context()))
		})
	}
}

func TestASecondAgentIsTold(t *testing.T) {
	w := newWorld(t)
	_, end := w.nmi()
	for name, second := range map[string]*redirect.NFTables{"bound": w.bound(), "staying": w.datapath()} {
		t.Run(name, func(t *testing.T) {
			_, ensureErr := second.Ensure(t.Context())
			removed, deleteErr := second.Delete(t.Context())
			for _, err := range []error{ensureErr, deleteErr, second.Verify(t.Context())} {
				if !errors.Is(err, redirect.ErrHeld) {
					t.Errorf("got %v, want %v", err, redirect.ErrHeld)
				}
			}
			if !removed.IsZero() {
				t.Errorf("%+v was removed from under an agent that runs", removed)
			}
			w.hears(w.pod, metadata, "nmi hears "+podIP)
		})
	}
	end()
	w.nmi()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}

// TestTakingOver: what redirect-only has put in place becomes the agent's own
// without a moment in which a pod's connection fails.
func TestTakingOver(t *testing.T) {
	eachTarget(t, func(w *world) {
		w.prepared()
		w.serve(w.node, w.target, "nmi")
		for range 10 {
			standing := w.ensured()
			d := w.bound()
			change := must2(d.Ensure(w.Context()))(w)
			if !change.Rules {
				w.Errorf("got %+v, want the table replaced", change)
			}
			w.hears(w.pod, metadata, "nmi hears "+podIP)
			w.must(d.End())
			w.refused(w.pod, metadata)
			must2(standing.Ensure(w.Context()))(w)
			w.hears(w.pod, metadata, "nmi hears "+podIP)
		}
		w.noLeaks()
	})
}

func TestARivalOfABoundRedirect(t *testing.T) {
	w := newRivalry(t)
	w.serve(w.node, w.target, "nmi")
	k := w.keep(w.bound())
	w.divert("rival", -110, elsewhere)
	k.repaired()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}

// TestRefuse: an agent that drains takes no new connections and loses none.
func TestRefuse(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := w.bound()
		must2(d.Ensure(w.Context()))(w)
		listener := must2(w.node.Listen(w.Context(), "tcp4", w.target))(w)
		defer listener.Close()
		client := must2(w.pod.DialContext(w.Context(), "tcp4", metadata))(w)
		defer client.Close()
		served := must2(listener.Accept())(w)
		w.must(d.Refuse())
		w.refused(w.pod, metadata)
		must2(io.WriteString(served, "still here"))(w)
		served.Close()
		if got, err := io.ReadAll(client); err != nil || string(got) != "still here" {
			w.Errorf("got %q, %v", got, err)
		}
		w.noLeaks()
		must2(d.Delete(w.Context()))(w)
		w.hears(w.pod, metadata, "azure hears "+podIP)
		w.must(d.Refuse()) // there is nothing to refuse any more
	})
}

// TestTheEndOfAnAgentIsSeen: a keeper of a redirect that stays puts its own back
// when an agent that had taken over ends.
func TestTheEndOfAnAgentIsSeen(t *testing.T) {
	w := newWorld(t)
	k := w.keep(w.datapath())
	w.serve(w.node, w.target, "nmi")
	d := w.bound()
	must2(d.Ensure(t.Context()))(w)
	w.must(d.End())
	k.repaired()
	w.hears(w.pod, metadata, "nmi hears "+podIP)
}
