// Package nodereport writes how the agent of a node is to the
// AzureIdentityNodeReport of that node.
//
// What it says is computed from [Facts] by a pure function; when to write it is
// decided by [Writer]. It must not find anything out by itself, and nothing in
// the agent may wait for it.
package nodereport

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Facts are what is known of the agent.
type Facts struct {
	// Pod is the name of the agent's own pod; empty if it is not known.
	Version, Mode, Pod, Target string

	// Proof is what ties requests to pods; empty without pods. Why says what is in
	// the way of more.
	Proof v1.CallerProof
	Why   string
	// Refused is how many addresses are not served for want of proof.
	Refused int

	// Rules and Unready are what is wrong with the rules, and with anything; nil
	// is nothing.
	Rules, Unready error
	// Placed says that the rules have been put in place.
	Placed bool
	// Probed is when a packet of the agent's own last came back.
	Probed time.Time
	// Bypasses are signs that pods' packets go past the rules.
	Bypasses []string
}

// maxMessage bounds the message of a condition, in bytes.
const maxMessage = 1024

// Status says the facts. Conditions that say what those of before said keep since
// when.
func Status(facts Facts, before []metav1.Condition, now time.Time) v1.AzureIdentityNodeReportStatus {
	out := v1.AzureIdentityNodeReportStatus{
		Version: facts.Version, Mode: facts.Mode, Pod: facts.Pod, Target: facts.Target, CallerProof: facts.Proof,
		RulesInPlace: facts.Rules == nil, Ready: facts.Unready == nil,
	}
	if !facts.Probed.IsZero() {
		out.LastProbe = &metav1.Time{Time: facts.Probed.Truncate(time.Second)}
	}
	for _, known := range before {
		out.Conditions = append(out.Conditions, *known.DeepCopy())
	}
	set(&out, now, ready(facts), proven(facts), seen(facts), placed(facts))
	return out
}

func set(status *v1.AzureIdentityNodeReportStatus, now time.Time, conditions ...metav1.Condition) {
	for _, condition := range conditions {
		condition.LastTransitionTime = metav1.Time{Time: now.Truncate(time.Second)}
		condition.Message = condition.Message[:min(len(condition.Message), maxMessage)]
		apimeta.SetStatusCondition(&status.Conditions, condition)
	}
}

// End is how an agent that ends for good leaves its node. Reason is
// [v1.ReasonRulesRemoved], [v1.ReasonRulesLeft] or [v1.ReasonNoRules].
type End struct {
	Reason v1.Reason
	// Message says more, for people.
	Message string
}

// Failed is the end of an agent that could not put its rules in place, and why.
// Clean says that the node has none of them, nor of an agent before it.
func Failed(why error, clean bool) End {
	if clean {
		return End{v1.ReasonNoRules, "the agent has ended, and the node has no rules of its: " + why.Error()}
	}
	return End{v1.ReasonRulesLeft, "the agent has ended, and the node has some rules of its, nmi cleanup removes them: " + why.Error()}
}

// Ended says how an agent has left its node that was as before says.
func Ended(before v1.AzureIdentityNodeReportStatus, end End, now time.Time) v1.AzureIdentityNodeReportStatus {
	out := *before.DeepCopy()
	out.RulesInPlace, out.Ready = false, false
	onNode := metav1.ConditionFalse
	if end.Reason == v1.ReasonRulesLeft {
		onNode = metav1.ConditionTrue
	}
	set(&out, now,
		condition(v1.ConditionReady, metav1.ConditionFalse, v1.ReasonNotReady, "the agent has ended"),
		condition(v1.ConditionRulesOnNode, onNode, end.Reason, end.Message))
	return out
}

func ready(facts Facts) metav1.Condition {
	if facts.Unready != nil {
		return condition(v1.ConditionReady, metav1.ConditionFalse, v1.ReasonNotReady, facts.Unready.Error())
	}
	return condition(v1.ConditionReady, metav1.ConditionTrue, v1.ReasonInForce, "pods are served")
}

func proven(facts Facts) metav1.Condition {
	switch {
	case facts.Refused > 0:
		return condition(v1.ConditionCallersProven, metav1.ConditionFalse, v1.ReasonCallerUnproven,
			fmt.Sprintf("%d addresses of pods are refused, since nothing shows which pod asks: %s", facts.Refused, facts.Why))
	case facts.Proof == "":
		return condition(v1.ConditionCallersProven, metav1.ConditionUnknown, v1.ReasonInForce, "the node has no pods that could ask")
	case facts.Proof == "ip-only":
		return condition(v1.ConditionCallersProven, metav1.ConditionFalse, v1.ReasonAddressOnly,
			"pods are known by their address alone. A pod that can take another's address gets its tokens, and a new pod may be taken for the last one that had its address, for as long as the API shows that one: "+facts.Why)
	}
	return condition(v1.ConditionCallersProven, metav1.ConditionTrue, v1.ReasonInForce, "the node's links show which pod asks")
}

func seen(facts Facts) metav1.Condition {
	if len(facts.Bypasses) > 0 {
		return condition(v1.ConditionDatapathSeen, metav1.ConditionFalse, v1.ReasonDatapathBypass,
			"pods' packets may go past the rules, straight to the node's metadata service: "+strings.Join(facts.Bypasses, "; "))
	}
	return condition(v1.ConditionDatapathSeen, metav1.ConditionTrue, v1.ReasonInForce, "nothing on this node is known to take pods' packets past the rules")
}

// placed is not False before an agent has looked at what is on the node: rules of
// one before it may be there.
func placed(facts Facts) metav1.Condition {
	if !facts.Placed {
		return condition(v1.ConditionRulesOnNode, metav1.ConditionUnknown, v1.ReasonNotReady, "the agent has not put its rules in place yet")
	}
	return condition(v1.ConditionRulesOnNode, metav1.ConditionTrue, v1.ReasonInForce, "the node has the agent's rules, which outlive it")
}

func condition(kind string, status metav1.ConditionStatus, reason v1.Reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: string(reason), Message: message}
}

// differs reports whether two statuses say different things. When the last probe
// was, and since when conditions hold, says nothing new.
func differs(a, b v1.AzureIdentityNodeReportStatus) bool {
	return !equality.Semantic.DeepEqual(timeless(a), timeless(b))
}

func timeless(status v1.AzureIdentityNodeReportStatus) *v1.AzureIdentityNodeReportStatus {
	out := status.DeepCopy()
	out.LastProbe = nil
	for i := range out.Conditions {
		out.Conditions[i].LastTransitionTime = metav1.Time{}
	}
	return out
}
