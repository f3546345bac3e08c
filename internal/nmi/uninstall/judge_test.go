package uninstall

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// says is the report of a node that a pod has written; an empty status leaves the
// condition out.
func says(node, pod string, status metav1.ConditionStatus, reason v1.Reason) v1.AzureIdentityNodeReport {
	report := v1.AzureIdentityNodeReport{ObjectMeta: metav1.ObjectMeta{Name: node}, Status: v1.AzureIdentityNodeReportStatus{Pod: pod}}
	if status != "" {
		report.Status.Conditions = []metav1.Condition{
			{Type: v1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(v1.ReasonNotReady)},
			{Type: v1.ConditionRulesOnNode, Status: status, Reason: string(reason), Message: "as the agent says"},
		}
	}
	return report
}

func TestJudge(t *testing.T) {
	const (
		silent   = "the agent has ended without removing its rules, or without saying so"
		noReport = "pod p has ended, and the node has no report"
		foreign  = "pod p has ended, and the report is not of it"
	)
	ended, stuck := agent{name: "p", node: "n", ran: true, ended: true}, agent{name: "p", node: "n", ran: true}
	idle := agent{name: "p", node: "n", ended: true}
	removed := says("n", "p", metav1.ConditionFalse, v1.ReasonRulesRemoved)
	kept := says("n", "p", metav1.ConditionTrue, v1.ReasonInForce)
	for name, test := range map[string]struct {
		agents    []agent
		reports   []v1.AzureIdentityNodeReport
		off       bool
		confirmed int
		why       string
	}{
		"nothing was ever there":                           {},
		"the agent removed its rules":                      {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{removed}, confirmed: 1},
		"a second run sees the report alone":               {reports: []v1.AzureIdentityNodeReport{removed}, confirmed: 1},
		"the agent never had rules in place":               {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{says("n", "p", metav1.ConditionFalse, v1.ReasonNoRules)}, confirmed: 1},
		"the agent could not remove its rules":             {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{says("n", "p", metav1.ConditionTrue, v1.ReasonRulesLeft)}, why: "as the agent says"},
		"the agent ended and said nothing":                 {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{kept}, why: silent},
		"a second run after that":                          {reports: []v1.AzureIdentityNodeReport{kept}, why: silent},
		"the agent had not come to its rules":              {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{says("n", "p", metav1.ConditionUnknown, v1.ReasonNotReady)}, why: silent},
		"an agent that knows no such condition":            {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{says("n", "p", "", "")}, why: "the agent has ended, and its report does not say that it removed its rules"},
		"the agent has not ended":                          {agents: []agent{stuck}, reports: []v1.AzureIdentityNodeReport{kept}, why: "pod p has not ended"},
		"nor, though it says so":                           {agents: []agent{stuck}, reports: []v1.AzureIdentityNodeReport{removed}, why: "pod p has not ended"},
		"nor, and it writes no report":                     {agents: []agent{stuck}, off: true, why: "pod p has not ended"},
		"the agent never wrote a report":                   {agents: []agent{ended}, why: noReport},
		"an agent before it removed its rules":             {agents: []agent{ended}, reports: []v1.AzureIdentityNodeReport{says("n", "q", metav1.ConditionFalse, v1.ReasonRulesRemoved)}, why: foreign},
		"one of two agents of the node says so":            {agents: []agent{{name: "q", node: "n", ran: true, ended: true}, ended}, reports: []v1.AzureIdentityNodeReport{removed}, confirmed: 1},
		"one has ended and another has not":                {agents: []agent{{name: "q", node: "n", ran: true}, ended}, reports: []v1.AzureIdentityNodeReport{removed}, why: "pod q has not ended"},
		"the agent was never started":                      {agents: []agent{idle}},
		"nor started, but one before it was":               {agents: []agent{idle}, reports: []v1.AzureIdentityNodeReport{says("n", "q", metav1.ConditionTrue, v1.ReasonInForce)}, why: silent},
		"nor started, and one before it removed its rules": {agents: []agent{idle}, reports: []v1.AzureIdentityNodeReport{says("n", "q", metav1.ConditionFalse, v1.ReasonRulesRemoved)}, confirmed: 1},
		"an agent that no node was found for":              {agents: []agent{{name: "p"}}},
		"agents that write no reports have ended":          {agents: []agent{ended}, off: true},
	} {
		t.Run(name, func(t *testing.T) {
			want := verdict{confirmed: test.confirmed}
			if test.why != "" {
				want.left = []left{{"n", test.why}}
			}
			if diff := cmp.Diff(want, judge(test.agents, test.reports, !test.off), cmp.AllowUnexported(verdict{}, left{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestJudgeNames: the nodes come in order, each once, and each by itself.
func TestJudgeNames(t *testing.T) {
	agents := []agent{{name: "c", node: "c", ran: true}, {name: "a", node: "a", ran: true, ended: true}, {name: "b", node: "b", ran: true, ended: true}}
	reports := []v1.AzureIdentityNodeReport{says("d", "d", metav1.ConditionTrue, v1.ReasonInForce), says("b", "b", metav1.ConditionFalse, v1.ReasonRulesRemoved)}
	want := verdict{confirmed: 1, left: []left{
		{"a", "pod a has ended, and the node has no report"},
		{"c", "pod c has not ended"},
		{"d", "the agent has ended without removing its rules, or without saying so"},
	}}
	if diff := cmp.Diff(want, judge(agents, reports, true), cmp.AllowUnexported(verdict{}, left{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestJudgeNeverGuesses: whatever is known, a node counts as clean only by the word
// of an agent of its own that has ended, and the order of things does not matter.
func TestJudgeNeverGuesses(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	statuses := []metav1.ConditionStatus{"", metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionUnknown}
	nodes, pods := []string{"", "m", "n"}, []string{"", "p", "q"}
	for range 5000 {
		var agents []agent
		for i := range random.IntN(4) {
			agents = append(agents, agent{name: pods[1+i%2], node: nodes[random.IntN(3)], ran: random.IntN(2) == 0, ended: random.IntN(2) == 0})
		}
		var reports []v1.AzureIdentityNodeReport
		for _, node := range nodes[1:] {
			if random.IntN(3) > 0 {
				reports = append(reports, says(node, pods[random.IntN(3)], statuses[random.IntN(4)], v1.ReasonInForce))
			}
		}
		got := judge(agents, reports, true)
		clean := 0
		for i := range reports {
			status := reports[i].Status
			if len(status.Conditions) == 2 && status.Conditions[1].Status == metav1.ConditionFalse {
				clean++
			}
		}
		if got.confirmed > clean {
			t.Fatalf("%d nodes are confirmed by %d reports: %+v, %+v", got.confirmed, clean, agents, reports)
		}
		for _, a := range agents {
			if named := isLeft(got, a.node); a.node != "" && !a.ended && !named {
				t.Fatalf("%+v has not ended, and its node is not named: %+v", a, got)
			}
		}
		random.Shuffle(len(agents), func(i, j int) { agents[i], agents[j] = agents[j], agents[i] })
		if diff := cmp.Diff(got, judge(agents, reports, true), cmp.AllowUnexported(verdict{}, left{})); diff != "" {
			t.Fatalf("the order of %+v matters:\n%s", agents, diff)
		}
	}
}

func isLeft(v verdict, node string) bool {
	for _, l := range v.left {
		if l.node == node {
			return true
		}
	}
	return false
}

func TestAgentOf(t *testing.T) {
	owned := func(apiVersion, kind, name string) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, UID: "u", Controller: new(true)}}
	}
	for name, test := range map[string]struct {
		owners []metav1.OwnerReference
		status corev1.ContainerStatus
		want   agent
		ours   bool
	}{
		"of the DaemonSet":            {owned("apps/v1", "DaemonSet", "nmi"), corev1.ContainerStatus{}, agent{name: "p", node: "n"}, true},
		"of another":                  {owned("apps/v1", "DaemonSet", "other"), corev1.ContainerStatus{}, agent{}, false},
		"of a ReplicaSet of the name": {owned("apps/v1", "ReplicaSet", "nmi"), corev1.ContainerStatus{}, agent{}, false},
		"of another group":            {owned("example.com/v1", "DaemonSet", "nmi"), corev1.ContainerStatus{}, agent{}, false},
		"of nobody":                   {nil, corev1.ContainerStatus{}, agent{}, false},
		"it runs":                     {owned("apps/v1", "DaemonSet", "nmi"), corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}, agent{name: "p", node: "n", ran: true}, true},
		"it ran":                      {owned("apps/v1", "DaemonSet", "nmi"), corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}, agent{name: "p", node: "n", ran: true}, true},
		"it waits to run again":       {owned("apps/v1", "DaemonSet", "nmi"), corev1.ContainerStatus{RestartCount: 1, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}, agent{name: "p", node: "n", ran: true}, true},
		"its image cannot be pulled":  {owned("apps/v1", "DaemonSet", "nmi"), corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}}, agent{name: "p", node: "n"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "p", OwnerReferences: test.owners},
				Spec:       corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{test.status}},
			}
			if got, ours := agentOf(pod, "nmi"); got != test.want || ours != test.ours {
				t.Errorf("got %+v, %t, want %+v, %t", got, ours, test.want, test.ours)
			}
		})
	}
}
