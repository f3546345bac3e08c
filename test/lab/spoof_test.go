//go:build e2e

package lab_test

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
	"github.com/aad-pod-identity/aad-pod-identity/test/spoof"
)

// bridged is a node whose pods share a bridge.
const bridged = "node1"

// TestNeighbourSpoofed: on a node whose pods share a bridge, a pod takes its
// neighbour's address, by ARP, or by its MAC as well. The node believes it and
// answers it, and it is never given a token of its neighbour's.
func TestNeighbourSpoofed(t *testing.T) {
	believeAtOnce(t)
	w := tapWire(t, bridged)
	t.Run("taken", func(t *testing.T) { // until both are over
		for name, withMAC := range map[string]bool{"by ARP": false, "by ARP and MAC": true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				spoofNeighbour(t, withMAC)
			})
		}
	})
	w.wantSilence(t)
}

func spoofNeighbour(t *testing.T, withMAC bool) {
	t.Helper()
	namespace := newNamespace(t)
	wanted, another := newIdentity(t, namespace, "victim"), newIdentity(t, namespace, "thief")
	bind(t, namespace, "victim", wanted)
	bind(t, namespace, "thief", another)
	victim, victimIn, victimAsks := runAsker(t, namespace, bridged, "victim", wanted)
	thief, thiefIn, _ := runAsker(t, namespace, bridged, "thief", another)

	s := newSpoofer(t, thiefIn, addressOf(t, thief))
	if withMAC {
		mac, err := spoof.MAC(victimIn, "eth0")
		must(t, err)
		must(t, s.TakeMAC(mac))
	}
	taken := addressOf(t, victim)
	must(t, s.Take(taken))
	must(t, thiefIn.SetRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), taken.Masked().Addr().Next()))

	steals := newAsker(thiefIn, wanted)
	random := rand.New(rand.NewPCG(5, 6))
	for round := 0; round < 30 && steals.answers["403"] < 5; round++ {
		if random.IntN(3) < 2 { // what was claimed before may be believed still
			must(t, s.Claim(taken.Addr()))
		}
		if random.IntN(3) == 0 {
			victimAsks.ask(t.Context())
		}
		steals.ask(t.Context())
	}
	t.Logf("answers to the thief: %s; to the victim: %s", steals, victimAsks)
	steals.wantNone(t, own)
	steals.wantNone(t, anothers)
	victimAsks.wantNone(t, anothers)
	if !strings.Contains(steals.pages["403"], "CallerMismatch") {
		t.Errorf("the node was never taken in, so that nothing was shown: %s; there was %s", steals, steals.pages)
	}
}

// believeAtOnce has the node believe whoever claims an address last. By default
// the first is believed for a second.
func believeAtOnce(t *testing.T) {
	t.Helper()
	const key = "net/ipv4/neigh/cni0/locktime"
	node := enter(t, bridged)
	before, err := node.Sysctl(key)
	must(t, err)
	must(t, node.SetSysctl(key, "0"))
	t.Cleanup(func() { must(t, node.SetSysctl(key, before)) })
}

func newSpoofer(t *testing.T, inside *netns.NS, own netip.Prefix) *spoof.Spoofer {
	t.Helper()
	s, err := spoof.New(inside, "eth0", own)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// addressOf is the address of a pod with the length of its node's range.
func addressOf(t *testing.T, pod *corev1.Pod) netip.Prefix {
	t.Helper()
	address, err := netip.ParseAddr(pod.Status.PodIP)
	must(t, err)
	return netip.PrefixFrom(address, podRange(t, pod.Spec.NodeName).Bits())
}
