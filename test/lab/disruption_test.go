//go:build e2e

package lab_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// disrupted are the nodes that the tests disrupt: one of each kind.
func disrupted() []string { return []string{"node1", "node2"} }

// runAsker runs a pod on a node and returns its network and a program in it that
// asks for tokens of the identity, which is bound by the selector's name.
func runAsker(t *testing.T, namespace, node, selector string, identity model.Identity) (*corev1.Pod, *netns.NS, *asker) {
	t.Helper()
	pod := runPod(t, newPod(namespace, selector+"-"+node, selector, node))
	awaitAssigned(t, pod, selector)
	inside := enterPod(t, pod)
	a := newAsker(inside, identity)
	a.wantToken(t)
	return pod, inside, a
}

// TestAgentAway: whatever takes NMI away, for a moment or for longer, no packet
// of a pod comes to the node's metadata address, nobody gets a token of somebody
// else, and tokens are there again once NMI is.
func TestAgentAway(t *testing.T) {
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "asker")
	bind(t, namespace, "asker", identity)
	for _, node := range disrupted() {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			_, _, asking := runAsker(t, namespace, node, "asker", identity)
			w := tapWire(t, node)
			for _, away := range []struct {
				how  string
				take func(*testing.T, string)
			}{
				{"killed, and killed again", killAgent},
				{"its pod deleted", deleteAgent},
			} {
				t.Run(away.how, func(t *testing.T) {
					asking.during(t, func() { away.take(t, node) })
					asking.wantToken(t)
					asking.wantNone(t, anothers)
					w.wantSilence(t)
				})
			}
		})
	}
}

// TestAgentRolled is TestAgentAway for all nodes at once, as an upgrade does it.
func TestAgentRolled(t *testing.T) {
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "asker")
	bind(t, namespace, "asker", identity)
	var asking []*asker
	var wires []*wire
	for _, node := range disrupted() {
		_, _, a := runAsker(t, namespace, node, "asker", identity)
		asking, wires = append(asking, a), append(wires, tapWire(t, node))
	}
	asking[0].during(t, func() {
		asking[1].during(t, func() { rollAgents(t) })
	})
	for i := range asking {
		asking[i].wantToken(t)
		asking[i].wantNone(t, anothers)
		wires[i].wantSilence(t)
	}
}

// killAgent kills NMI on a node, which Kubernetes starts again, three times.
func killAgent(t *testing.T, node string) {
	for range 3 {
		pod := awaitAgent(t, node, func(*corev1.Pod) bool { return true })
		restarts := pod.Status.ContainerStatuses[0].RestartCount
		signal(t, node, "KILL", contained(t, pod, "nmi"))
		awaitAgent(t, node, func(p *corev1.Pod) bool {
			return p.UID == pod.UID && p.Status.ContainerStatuses[0].RestartCount > restarts
		})
	}
}

// deleteAgent deletes NMI's pod on a node, in whose place another comes.
func deleteAgent(t *testing.T, node string) {
	pod := awaitAgent(t, node, func(*corev1.Pod) bool { return true })
	must(t, lab.kube.Delete(t.Context(), pod))
	awaitAgent(t, node, func(p *corev1.Pod) bool { return p.UID != pod.UID })
}

// rollAgents does what `kubectl rollout restart` does, and waits for its end.
func rollAgents(t *testing.T) {
	agents := &appsv1.DaemonSet{}
	must(t, lab.kube.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "aad-pod-identity-nmi"}, agents))
	before := agents.DeepCopy()
	if agents.Spec.Template.Annotations == nil {
		agents.Spec.Template.Annotations = map[string]string{}
	}
	agents.Spec.Template.Annotations["kubectl.kubernetes.io/restartedAt"] = time.Now().Format(time.RFC3339)
	must(t, lab.kube.Patch(t.Context(), agents, client.MergeFrom(before)))
	await(t, &appsv1.DaemonSetList{}, "NMI is rolled", func(d *appsv1.DaemonSet) bool {
		s := d.Status
		return d.Name == agents.Name && s.ObservedGeneration >= agents.Generation &&
			s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberReady == s.DesiredNumberScheduled && s.NumberUnavailable == 0
	}, client.InNamespace(systemNamespace))
}

// awaitAgent waits for a ready NMI of a node that satisfies want.
func awaitAgent(t *testing.T, node string, want func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	return await(t, &corev1.PodList{}, "NMI is ready on "+node, func(p *corev1.Pod) bool {
		return p.Spec.NodeName == node && p.DeletionTimestamp == nil && isReady(p) && want(p)
	}, client.InNamespace(systemNamespace), client.MatchingLabels{"app.kubernetes.io/component": "nmi"})
}

func isReady(p *corev1.Pod) bool {
	return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
}

// TestRulesFlushed: somebody with root on the node removes NMI's rules while NMI
// runs. Until NMI hears of it and puts them back nothing holds a pod's packets,
// for what would is in the same table: no program can close that window, it can
// only be short. The promise is: the same rules again within a second, no matter
// how they went, and silence from then on. The test says how long it took and
// how many packets of a pod that sends one each millisecond came through.
func TestRulesFlushed(t *testing.T) {
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "asker")
	bind(t, namespace, "asker", identity)
	for _, node := range disrupted() {
		t.Run(node, func(t *testing.T) {
			_, inside, asking := runAsker(t, namespace, node, "asker", identity)
			w := tapWire(t, node)
			for _, how := range []string{"delete", "flush"} {
				before := agentRules(t, node)
				var took time.Duration
				sent := probing(t, inside, func() {
					start := time.Now()
					onNode(t, node, "nft", how, "table", "ip", agentTable)
					took = awaitRules(t, node, before, start)
				})
				t.Logf("nft %s table: the rules were back %s after the command began; %d of %d packets came through meanwhile",
					how, took.Round(time.Millisecond), w.fresh(t), sent)
				if sent = probing(t, inside, func() { asking.wantToken(t) }); sent == 0 {
					t.Error("nothing was sent to show that the rules hold again")
				}
				w.wantSilence(t)
			}
		})
	}
}

// agentTable is NMI's nftables table.
const agentTable = "aad-pod-identity"

func agentRules(t *testing.T, node string) string {
	t.Helper()
	return onNode(t, node, "nft", "--stateless", "list", "table", "ip", agentTable)
}

// awaitRules asks for the rules, for ten seconds at most, until they are what
// they were. It fails the test if that is more than a second after start.
func awaitRules(t *testing.T, node, before string, start time.Time) time.Duration {
	t.Helper()
	for time.Since(start) < 10*time.Second {
		now, err := lab.cli(t.Context(), "node", node[len("node"):], "--", "nft", "--stateless", "list", "table", "ip", agentTable)
		took := time.Since(start)
		if err != nil || now != before { // no table is an error
			continue
		}
		if took > time.Second {
			t.Errorf("the rules came back after %s, want a second at most", took)
		}
		return took
	}
	t.Fatalf("the rules of %s did not come back; they are %s", node, agentRules(t, node))
	return 0
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

