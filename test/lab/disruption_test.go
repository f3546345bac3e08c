//go:build e2e

package lab_test

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/labcli"
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

// runAskers runs one on each disrupted node, all with an identity.
func runAskers(t *testing.T, namespace string, identity model.Identity) []*asker {
	t.Helper()
	bind(t, namespace, "asker", identity)
	var all []*asker
	for _, node := range disrupted() {
		_, _, a := runAsker(t, namespace, node, "asker", identity)
		all = append(all, a)
	}
	return all
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
			_, inside, asking := runAsker(t, namespace, node, "asker", identity)
			w := tapWire(t, node)
			for _, away := range []struct {
				how  string
				take func(*testing.T, string)
			}{
				{"killed, and killed again", killAgent},
				{"its pod deleted", deleteAgent},
				{"hung, its rules deleted by hand, and killed", func(t *testing.T, node string) { hangAgent(t, node, inside) }},
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

// killAgent kills NMI on a node, which Kubernetes starts again, twice.
func killAgent(t *testing.T, node string) {
	for range 2 {
		pod := awaitAgent(t, node, func(*corev1.Pod) bool { return true })
		restarts := pod.Status.ContainerStatuses[0].RestartCount
		kill(t, node, "KILL", contained(t, pod, "nmi"))
		awaitAgent(t, node, func(p *corev1.Pod) bool {
			return p.UID == pod.UID && p.Status.ContainerStatuses[0].RestartCount > restarts
		})
	}
}

// hangAgent stops NMI on a node and deletes one of the fences, which nobody puts
// back while a pod sends; then NMI is killed, with which the table of its own
// goes, and Kubernetes starts it again.
func hangAgent(t *testing.T, node string, inside *netns.NS) {
	for _, table := range []string{fenceTable, spareTable} {
		before := agentRules(t, node)
		pod := awaitAgent(t, node, func(*corev1.Pod) bool { return true })
		restarts := pod.Status.ContainerStatuses[0].RestartCount
		process := contained(t, pod, "nmi")
		kill(t, node, "STOP", process)
		onNode(t, node, "nft", "delete table ip "+table)
		probing(t, inside, func() {})
		if out, err := inNode(t.Context(), node, listRules()...); err == nil {
			t.Errorf("the rules are there though NMI was stopped: %s", out)
		}
		kill(t, node, "KILL", process)
		awaitAgent(t, node, func(p *corev1.Pod) bool {
			return p.UID == pod.UID && p.Status.ContainerStatuses[0].RestartCount > restarts
		})
		awaitRules(t, node, before)
	}
}

// deleteAgent deletes NMI's pod on a node, in whose place another comes.
func deleteAgent(t *testing.T, node string) {
	pod := awaitAgent(t, node, func(*corev1.Pod) bool { return true })
	must(t, lab.Kube.Delete(t.Context(), pod))
	awaitAgent(t, node, func(p *corev1.Pod) bool { return p.UID != pod.UID })
}

// rollAgents does what `kubectl rollout restart` does, and waits for its end.
func rollAgents(t *testing.T) {
	agents := &appsv1.DaemonSet{}
	must(t, lab.Kube.Get(t.Context(), client.ObjectKey{Namespace: labcli.SystemNamespace, Name: "aad-pod-identity-nmi"}, agents))
	before := agents.DeepCopy()
	if agents.Spec.Template.Annotations == nil {
		agents.Spec.Template.Annotations = map[string]string{}
	}
	agents.Spec.Template.Annotations["kubectl.kubernetes.io/restartedAt"] = time.Now().Format(time.RFC3339)
	must(t, lab.Kube.Patch(t.Context(), agents, client.MergeFrom(before)))
	await(t, &appsv1.DaemonSetList{}, "NMI is rolled", func(d *appsv1.DaemonSet) bool {
		s := d.Status
		return d.Name == agents.Name && s.ObservedGeneration >= agents.Generation &&
			s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberReady == s.DesiredNumberScheduled && s.NumberUnavailable == 0
	}, client.InNamespace(labcli.SystemNamespace))
}

// awaitAgent waits for a ready NMI of a node that satisfies want.
func awaitAgent(t *testing.T, node string, want func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	return await(t, &corev1.PodList{}, "NMI is ready on "+node, func(p *corev1.Pod) bool {
		return p.Spec.NodeName == node && p.DeletionTimestamp == nil && isReady(p) && want(p)
	}, client.InNamespace(labcli.SystemNamespace), client.MatchingLabels{"app.kubernetes.io/component": "nmi"})
}

func isReady(p *corev1.Pod) bool {
	return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
}

// TestLeaderLost: MIC's leader goes while ARM has work of it in hand. Another
// replica takes over and finishes it, with exactly one change in Azure for what
// one pod needs, and knows later what it may remove.
func TestLeaderLost(t *testing.T) {
	for _, lost := range []struct {
		how   string
		fault fault.Fault
		sent  func(*testing.T, uint64, model.Identity, fault.Fault)
		lose  func(*testing.T, *corev1.Pod, int)
	}{
		{"killed while Azure works on its request", slowOperations(), awaitAttaching, killLeader},
		{"killed before Azure takes its request", slowRequest(), awaitPlayed, killLeader},
		{"deleted while Azure works on its request", slowOperations(), awaitAttaching, deleteLeader},
	} {
		t.Run(lost.how, func(t *testing.T) {
			const node = "node2"
			awaitQuiet(t)
			namespace := newNamespace(t)
			identity := newIdentity(t, namespace, "app")
			bind(t, namespace, "app", identity)
			leader := awaitLeader(t, func(*corev1.Pod) bool { return true })
			process, before := contained(t, leader, "mic"), lastEntry(t)
			played := playFault(t, lost.fault)

			pod := newPod(namespace, "app", "app", node)
			must(t, lab.Kube.Create(t.Context(), pod))
			lost.sent(t, before, identity, played)
			lost.lose(t, leader, process)
			must(t, lab.Sim.RemoveFault(t.Context(), played.ID))

			next := awaitLeader(t, func(p *corev1.Pod) bool { return p.UID != leader.UID })
			t.Logf("%s led, now it is %s", leader.Name, next.Name)
			awaitPod(t, pod, corev1.PodRunning)
			awaitAssigned(t, pod, "app")
			newAsker(enterPod(t, pod), identity).wantToken(t)

			must(t, lab.Kube.Delete(t.Context(), pod))
			awaitDetached(t, node, before, identity)
			wantOneOfEach(t, before, identity)
			await(t, &appsv1.DeploymentList{}, "both replicas of MIC are there", func(d *appsv1.Deployment) bool {
				return d.Name == "aad-pod-identity-mic" && d.Status.Replicas == 2 && d.Status.AvailableReplicas == 2
			}, client.InNamespace(labcli.SystemNamespace))
		})
	}
}

// awaitQuiet waits until MIC has taken away what earlier tests needed, so that
// the faults to come meet this test's requests and no others.
func awaitQuiet(t *testing.T) {
	t.Helper()
	var records v1.AzureIdentityAttachmentList
	must(t, lab.Kube.List(t.Context(), &records))
	for i := range records.Items {
		name := records.Items[i].Name
		await(t, &v1.AzureIdentityAttachmentList{}, name+" owns nothing", func(a *v1.AzureIdentityAttachment) bool {
			return a.Name == name && len(a.Spec.Owned) == 0
		})
	}
}

// slowOperations lets nobody learn the end of an operation.
func slowOperations() fault.Fault {
	return fault.Fault{
		Match:    fault.Match{Surface: journal.ARM, Method: http.MethodGet, Path: "*/operations/*"},
		Response: fault.Response{Delay: fault.Duration(5 * time.Minute)},
	}
}

// slowRequest leaves one request on the way until its sender is gone.
func slowRequest() fault.Fault {
	return fault.Fault{
		Match: fault.Match{Surface: journal.ARM, Method: http.MethodPatch}, Times: 1,
		Response: fault.Response{Delay: fault.Duration(5 * time.Minute)},
	}
}

func playFault(t *testing.T, f fault.Fault) fault.Fault {
	t.Helper()
	f, err := lab.Sim.AddFault(t.Context(), f)
	must(t, err)
	t.Cleanup(func() { _ = lab.Sim.RemoveFault(context.WithoutCancel(t.Context()), f.ID) }) // it is gone if all went well
	return f
}

// awaitAttaching waits until ARM has taken a request that attaches the identity.
func awaitAttaching(t *testing.T, seq uint64, identity model.Identity, _ fault.Fault) {
	t.Helper()
	awaitEntry(t, seq, func(e journal.Entry) bool { return changed(e) && names(e.Added, identity) })
}

// awaitPlayed asks, for a minute at most, whether a request has met the fault.
func awaitPlayed(t *testing.T, _ uint64, _ model.Identity, f fault.Fault) {
	t.Helper()
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	for range 60 * 20 {
		faults, err := lab.Sim.Faults(t.Context())
		must(t, err)
		if slices.ContainsFunc(faults, func(x fault.Fault) bool { return x.ID == f.ID && x.Played > 0 }) {
			return
		}
		<-pace.C
	}
	t.Fatal("no request met the fault")
}

func awaitEntry(t *testing.T, seq uint64, match func(journal.Entry) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	_, err := lab.Sim.Wait(ctx, seq, match)
	must(t, err)
}

// changed reports whether ARM took a request that changes something.
func changed(e journal.Entry) bool {
	return e.Surface == journal.ARM && e.Method == http.MethodPatch && e.Status >= 200 && e.Status < 300
}

func names(ids []string, identity model.Identity) bool {
	return slices.ContainsFunc(ids, func(id string) bool { return strings.EqualFold(id, identity.ID) })
}

// killLeader kills MIC and forgets its pod, so that it does not come back under
// the same name.
func killLeader(t *testing.T, leader *corev1.Pod, process int) {
	kill(t, leader.Spec.NodeName, "KILL", process)
	must(t, lab.Kube.Delete(t.Context(), leader, client.GracePeriodSeconds(0)))
}

// deleteLeader lets MIC give up its lease, so that the next one comes while Azure
// is still at work.
func deleteLeader(t *testing.T, leader *corev1.Pod, _ int) {
	must(t, lab.Kube.Delete(t.Context(), leader))
}

// awaitLeader waits until the lease is held by a pod that satisfies want.
func awaitLeader(t *testing.T, want func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	awaitLease(t, func(lease *coordinationv1.Lease) bool {
		name, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
		err := lab.Kube.Get(t.Context(), client.ObjectKey{Namespace: labcli.SystemNamespace, Name: name}, pod)
		return err == nil && want(pod) // a lease outlives its holder
	})
	return pod
}

// awaitLease waits for a lease of MIC's leader that is held and satisfies want.
func awaitLease(t *testing.T, want func(*coordinationv1.Lease) bool) {
	t.Helper()
	await(t, &coordinationv1.LeaseList{}, "MIC has a leader", func(l *coordinationv1.Lease) bool {
		held := l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != ""
		return l.Name == "aad-pod-identity-mic" && held && want(l)
	}, client.InNamespace("default"))
}

// awaitDetached waits until Azure was told to take the identity off the node's
// scale set, MIC's record says no more that it is there, and it is not.
func awaitDetached(t *testing.T, node string, seq uint64, identity model.Identity) {
	t.Helper()
	scaleSet := azureNode(t, node).ScaleSet
	awaitEntry(t, seq, func(e journal.Entry) bool { return changed(e) && names(e.Removed, identity) })
	await(t, &v1.AzureIdentityAttachmentList{}, "the record forgets "+identity.ID, func(a *v1.AzureIdentityAttachment) bool {
		return strings.EqualFold(a.Spec.ResourceID, scaleSet) && !slices.ContainsFunc(a.Spec.Owned, func(o v1.OwnedIdentity) bool {
			return strings.EqualFold(o.ResourceID, identity.ID)
		})
	}, client.InNamespace(labcli.SystemNamespace))
	state, err := lab.Sim.State(t.Context())
	must(t, err)
	for _, s := range state.ScaleSets {
		if strings.EqualFold(s.ID, scaleSet) && names(s.UserAssigned, identity) {
			t.Errorf("%s is still on %s", identity.ID, scaleSet)
		}
	}
}

// wantOneOfEach wants one request that attached the identity and one that removed
// it.
func wantOneOfEach(t *testing.T, seq uint64, identity model.Identity) {
	t.Helper()
	entries, err := lab.Sim.Journal(t.Context(), seq)
	must(t, err)
	var added, removed int
	for _, e := range entries {
		if changed(e) && names(e.Added, identity) {
			added++
		}
		if changed(e) && names(e.Removed, identity) {
			removed++
		}
	}
	if added != 1 || removed != 1 {
		t.Errorf("%s was attached by %d requests and removed by %d, want one each", identity.ID, added, removed)
	}
}

// TestAPIServerRestarted: pods that NMI knows get tokens without an API server,
// whether it is gone or does not answer, and everything goes on by itself when
// it is back.
func TestAPIServerRestarted(t *testing.T) {
	namespace := newNamespace(t)
	asking := runAskers(t, namespace, newIdentity(t, namespace, "known"))
	// Each calls its argument as often as it can while the API server is away.
	for how, outage := range map[string]func(*testing.T, func()){
		"killed":                         killAPIServer,
		"silent for longer than a lease": silenceAPIServer,
	} {
		t.Run(how, func(t *testing.T) {
			outage(t, func() {
				for _, a := range asking {
					a.wantToken(t)
				}
			})
			back := time.Now()
			for _, a := range asking {
				t.Logf("answers so far: %s", a)
			}
			awaitLease(t, func(l *coordinationv1.Lease) bool { return l.Spec.RenewTime != nil && l.Spec.RenewTime.After(back) })
			namespace := newNamespace(t)
			identity := newIdentity(t, namespace, "late")
			bind(t, namespace, "late", identity)
			for _, node := range disrupted() {
				runAsker(t, namespace, node, "late", identity)
			}
		})
	}
}

// killAPIServer kills the API server, which its node starts again, and calls
// meanwhile twenty times a second until it answers, for 90 s at most.
func killAPIServer(t *testing.T, meanwhile func()) {
	kill(t, "node1", "KILL", supervised(t, "node1", "kube-apiserver"))
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	start := time.Now()
	for away := 0; time.Since(start) < 90*time.Second; away++ {
		meanwhile()
		if apiServerAnswers(t) {
			if away == 0 {
				t.Error("the API server was never away")
			}
			return
		}
		<-pace.C
	}
	t.Fatal("the API server did not come back")
}

// silenceAPIServer stops the API server and calls meanwhile twenty times a second
// for 20 s, in which leases run out.
func silenceAPIServer(t *testing.T, meanwhile func()) {
	process := supervised(t, "node1", "kube-apiserver")
	defer kill(t, "node1", "CONT", process)
	kill(t, "node1", "STOP", process)
	for tries := 0; apiServerAnswers(t); tries++ { // a stop may be a moment late
		if tries == 20 {
			t.Fatal("the API server answers though it was stopped")
		}
	}
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	for range 20 * 20 {
		meanwhile()
		<-pace.C
	}
}

// apiServerAnswers asks the API server and gives it a second.
func apiServerAnswers(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return lab.Kube.Get(ctx, client.ObjectKey{Name: "default"}, &corev1.Namespace{}) == nil
}

// TestKubeletStopped: a node that Kubernetes has lost sight of goes on serving
// its pods; one that was deleted by force meanwhile, and still runs there, gets
// nothing more, and its identity leaves Azure.
func TestKubeletStopped(t *testing.T) {
	const node = "node2"
	namespace := newNamespace(t)
	stays, leaves := newIdentity(t, namespace, "stays"), newIdentity(t, namespace, "leaves")
	bind(t, namespace, "stays", stays)
	bind(t, namespace, "leaves", leaves)
	_, _, staying := runAsker(t, namespace, node, "stays", stays)
	pod, _, leaving := runAsker(t, namespace, node, "leaves", leaves)
	w, before := tapWire(t, node), lastEntry(t)

	kubelet := supervised(t, node, "kubelet")
	t.Cleanup(func() { // again, if the test ended early
		_, _ = inNode(context.WithoutCancel(t.Context()), node, "kill", "-CONT", strconv.Itoa(kubelet))
	})
	kill(t, node, "STOP", kubelet)
	staying.during(t, func() {
		awaitNode(t, node, corev1.ConditionUnknown)
		must(t, lab.Kube.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
		awaitDetached(t, node, before, leaves)
	})
	for _, kind := range []string{anothers, unreachable} {
		staying.wantNone(t, kind)
	}
	staying.wantToken(t)
	if kind := leaving.ask(t.Context()); kind == own || kind == anothers || kind == unreachable {
		t.Errorf("a pod that is no more is answered: %s %s", kind, leaving.pages[kind])
	}
	w.wantSilence(t)
	assigned := &v1.AzureAssignedIdentityList{}
	must(t, lab.Kube.List(t.Context(), assigned))
	for _, a := range assigned.Items {
		if a.Spec.PodNamespace == namespace && a.Spec.Pod == pod.Name {
			t.Errorf("%s is still there", a.Name)
		}
	}

	kill(t, node, "CONT", kubelet)
	awaitNode(t, node, corev1.ConditionTrue)
	_, _, again := runAsker(t, namespace, node, "leaves", leaves)
	again.wantToken(t)
	staying.wantToken(t)
}

// awaitNode waits until a node's condition Ready has a status.
func awaitNode(t *testing.T, node string, status corev1.ConditionStatus) {
	t.Helper()
	await(t, &corev1.NodeList{}, node+" is "+string(status), func(n *corev1.Node) bool {
		return n.Name == node && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == status
		})
	})
}
