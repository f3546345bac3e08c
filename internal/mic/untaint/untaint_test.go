package untaint

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const key = "aadpodidentity.k8s.io/agent-not-ready"

func agent(phase corev1.PodPhase, ready corev1.ConditionStatus) corev1.Pod {
	return corev1.Pod{Status: corev1.PodStatus{Phase: phase, Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: ready},
	}}}
}

func TestWhenTheTaintIsToGo(t *testing.T) {
	ours := []corev1.Taint{{Key: "other"}, {Key: key, Effect: corev1.TaintEffectNoSchedule}}
	well, ill := agent(corev1.PodRunning, corev1.ConditionTrue), agent(corev1.PodRunning, corev1.ConditionFalse)
	ending := *well.DeepCopy()
	ending.DeletionTimestamp = &metav1.Time{}
	for name, test := range map[string]struct {
		taints []corev1.Taint
		agents []corev1.Pod
		want   bool
	}{
		"an agent that is ready":                {ours, []corev1.Pod{well}, true},
		"one of two, as in an update":           {ours, []corev1.Pod{ill, well}, true},
		"an agent that is not ready":            {ours, []corev1.Pod{ill}, false},
		"an agent of which nothing is known":    {ours, []corev1.Pod{{}}, false},
		"an agent whose node does not answer":   {ours, []corev1.Pod{agent(corev1.PodRunning, corev1.ConditionUnknown)}, false},
		"an agent that has ended and was ready": {ours, []corev1.Pod{agent(corev1.PodFailed, corev1.ConditionTrue)}, false},
		"an agent that is being deleted":        {ours, []corev1.Pod{ending}, false},
		"no agent":                              {ours, nil, false},
		"a node without the taint":              {ours[:1], []corev1.Pod{well}, false},
		"a node without taints":                 {nil, []corev1.Pod{well}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := due(test.taints, key, test.agents); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// What the rule reads must survive the cache.
func TestTheTrimmedPodDecidesTheSame(t *testing.T) {
	pod := agent(corev1.PodRunning, corev1.ConditionTrue)
	pod.Name, pod.Namespace, pod.Labels = "nmi-x", "ns", map[string]string{"a": "b"}
	pod.Spec = corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c"}}}
	trimmed, err := trim(&pod)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := trimmed.(*corev1.Pod)
	if !ok || !due([]corev1.Taint{{Key: key}}, key, []corev1.Pod{*got}) || got.Spec.Containers != nil || got.Labels != nil {
		t.Errorf("got %+v", trimmed)
	}
	if diff := cmp.Diff([]string{"node"}, nodeOf(got)); diff != "" || len(requests(t.Context(), got)) != 1 {
		t.Errorf("the node: %s", diff)
	}
	pod.Spec.NodeName = ""
	if nodeOf(&pod) != nil || requests(t.Context(), &pod) != nil {
		t.Error("a pod that is bound to no node touches one")
	}
}
