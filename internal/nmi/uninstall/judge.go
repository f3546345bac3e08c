package uninstall

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// agent is a pod of the DaemonSet, as it was last seen.
type agent struct {
	name, node string
	// ran says that it may have put rules on its node.
	ran bool
	// ended says that the pod is gone.
	ended bool
}

// agentOf returns the agent that a pod is; false if it is none of the DaemonSet of
// that name. A pod whose DaemonSet is gone still names it.
func agentOf(pod *corev1.Pod, daemonSet string) (agent, bool) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != "DaemonSet" || owner.APIVersion != "apps/v1" || owner.Name != daemonSet {
		return agent{}, false
	}
	return agent{name: pod.Name, node: pod.Spec.NodeName, ran: ran(pod)}, true
}

// ran reports whether a container of the pod was ever started.
func ran(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.RestartCount > 0 || c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
	})
}

// left is a node that may have rules still.
type left struct{ node, why string }

// verdict is what is known of the nodes after the agents were told to end.
type verdict struct {
	// confirmed is how many nodes have no rules, as their agents say.
	confirmed int
	// left are the others, by name.
	left []left
}

// judge decides of each node that has an agent or the report of one whether it is
// known to have no rules:
//
//	agent           report says          verdict
//	has not ended   anything             left: it may be at work
//	never ran       nothing              no matter: nobody has put rules there
//	ran             nothing              left
//	ran             of another pod       left: it is the word of an agent before it
//	ended or none   RulesOnNode False    confirmed
//	ended or none   anything else        left
//
// Without reports, nothing but agents that have not ended is known.
func judge(agents []agent, reports []v1.AzureIdentityNodeReport, reporting bool) verdict {
	by := map[string]*nodeState{}
	of := func(node string) *nodeState {
		if by[node] == nil {
			by[node] = &nodeState{}
		}
		return by[node]
	}
	for _, a := range agents {
		if a.node != "" { // one that was never given a node has touched none
			of(a.node).add(a)
		}
	}
	for i := range reports {
		of(reports[i].Name).report = &reports[i].Status
	}
	var out verdict
	for node, state := range by {
		why, known := state.why(reporting)
		switch {
		case why != "":
			out.left = append(out.left, left{node, why})
		case known:
			out.confirmed++
		}
	}
	slices.SortFunc(out.left, func(a, b left) int { return cmp.Compare(a.node, b.node) })
	return out
}

// nodeState is what is known of one node.
type nodeState struct {
	stuck  string          // the first agent that has not ended, if there is one
	ended  map[string]bool // the agents that ran and have ended
	report *v1.AzureIdentityNodeReportStatus
}

func (s *nodeState) add(a agent) {
	switch {
	case !a.ended && (s.stuck == "" || a.name < s.stuck):
		s.stuck = a.name
	case a.ended && a.ran:
		if s.ended == nil {
			s.ended = map[string]bool{}
		}
		s.ended[a.name] = true
	}
}

// why says why the node may have rules; "" if it has none, which is known from the
// report, or if nothing has put any there.
func (s *nodeState) why(reporting bool) (why string, known bool) {
	switch {
	case s.stuck != "":
		return fmt.Sprintf("pod %s has not ended", s.stuck), false
	case !reporting || s.report == nil && len(s.ended) == 0:
		return "", false
	case s.report == nil:
		return fmt.Sprintf("pod %s has ended, and the node has no report", names(s.ended)), false
	case len(s.ended) > 0 && !s.ended[s.report.Pod]:
		return fmt.Sprintf("pod %s has ended, and the report is not of it", names(s.ended)), false
	}
	condition := apimeta.FindStatusCondition(s.report.Conditions, v1.ConditionRulesOnNode)
	switch {
	case condition == nil:
		return "the agent has ended, and its report does not say that it removed its rules", false
	case condition.Status == metav1.ConditionFalse:
		return "", true
	case condition.Reason == string(v1.ReasonRulesLeft):
		return condition.Message, false
	}
	return "the agent has ended without removing its rules, or without saying so", false
}

func names(pods map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(pods)), ", ")
}
