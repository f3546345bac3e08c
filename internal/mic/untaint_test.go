package mic_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
)

const startupTaint = "example.com/agent"

// tainted makes a node that has started a moment ago.
func (w *world) tainted(t *testing.T, name string) {
	t.Helper()
	w.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: startupTaint, Value: "true", Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoSchedule},
	}}})
}

// agent makes a pod of the agent's on a node.
func (w *world) agent(t *testing.T, namespace, node string, ready corev1.ConditionStatus) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "nmi-" + node, Labels: map[string]string{"app.kubernetes.io/component": "nmi"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	w.create(t, pod)
	w.say(t, pod, ready)
	return pod
}

// say writes what the kubelet would.
func (w *world) say(t *testing.T, pod *corev1.Pod, ready corev1.ConditionStatus) {
	t.Helper()
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}
	if err := w.kube.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}

// untainted waits until exactly these nodes have lost the startup taint.
func (w *world) untainted(t *testing.T, names ...string) {
	t.Helper()
	nodes := await(t, w, &corev1.NodeList{}, "the startup taint to go", func(l *corev1.NodeList) bool {
		return len(without(l)) >= len(names)
	})
	if got := without(nodes); !slices.Equal(got, names) {
		t.Errorf("without the startup taint: %v, want %v", got, names)
	}
	for _, node := range nodes.Items {
		if !slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "other" }) {
			t.Errorf("node %s has lost another taint", node.Name)
		}
	}
}

func without(l *corev1.NodeList) []string {
	var out []string
	for _, node := range l.Items {
		if !slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == startupTaint }) {
			out = append(out, node.Name)
		}
	}
	slices.Sort(out)
	return out
}

func TestTheStartupTaintGoesWhenTheAgentIsReady(t *testing.T) {
	w := newWorld(t, azuresim.Config{})
	w.create(t,
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "untaint"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"patch"}}}},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "untaint"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "untaint"},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: micUser}},
		},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "somebody-else"}})
	for _, name := range []string{"a-ready", "b-starting", "c-without", "d-imitated", "e-later"} {
		w.tainted(t, name)
	}
	w.agent(t, micNamespace, "a-ready", corev1.ConditionTrue)
	starting := w.agent(t, micNamespace, "b-starting", corev1.ConditionFalse)
	w.agent(t, "somebody-else", "d-imitated", corev1.ConditionTrue)
	run(t, w.options(t, "--startup-taint-key="+startupTaint))
	w.untainted(t, "a-ready")
	w.say(t, starting, corev1.ConditionTrue)
	w.untainted(t, "a-ready", "b-starting")
	w.agent(t, micNamespace, "e-later", corev1.ConditionTrue)
	w.untainted(t, "a-ready", "b-starting", "e-later")
	// A node of the same name that starts anew has its agent already.
	edit(t, w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a-ready"}}, func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: startupTaint, Effect: corev1.TaintEffectNoExecute})
	})
	w.untainted(t, "a-ready", "b-starting", "e-later")
}

func TestAStartupTaintThatIsNone(t *testing.T) {
	options, err := mic.ParseOptions([]string{"--startup-taint-key=node.kubernetes.io/not-ready", "--cloudconfig=/nowhere"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	options.Getenv = func(string) string { return micNamespace }
	if err := mic.Run(context.WithoutCancel(t.Context()), options); err == nil || !strings.Contains(err.Error(), "--startup-taint-key") || !strings.Contains(err.Error(), "must stay") {
		t.Errorf("got %v", err)
	}
}
