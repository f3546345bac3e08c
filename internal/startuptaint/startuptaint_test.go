package startuptaint_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/startuptaint"
)

const key = "aadpodidentity.k8s.io/agent-not-ready"

func TestThePatchTakesTheTaintAndNothingElse(t *testing.T) {
	ours := func(effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Value: "true", Effect: effect}
	}
	other := corev1.Taint{Key: "other", Value: "v", Effect: corev1.TaintEffectNoSchedule}
	added := metav1.Unix(1_700_000_000, 0)
	timed := corev1.Taint{Key: "node.kubernetes.io/unreachable", Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}
	for name, test := range map[string]struct {
		taints []corev1.Taint
		want   string
	}{
		"none":                    {nil, ""},
		"others only":             {[]corev1.Taint{other, {Key: key + "x"}}, ""},
		"ours alone":              {[]corev1.Taint{ours(corev1.TaintEffectNoSchedule)}, `{"metadata":{"resourceVersion":"7"},"spec":{"taints":null}}`},
		"ours with every effect":  {[]corev1.Taint{ours(corev1.TaintEffectNoSchedule), ours(corev1.TaintEffectNoExecute)}, `{"metadata":{"resourceVersion":"7"},"spec":{"taints":null}}`},
		"ours among others":       {[]corev1.Taint{other, ours(corev1.TaintEffectNoSchedule), timed}, `{"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"key":"other","value":"v","effect":"NoSchedule"},{"key":"node.kubernetes.io/unreachable","effect":"NoExecute","timeAdded":"2023-11-14T22:13:20Z"}]}}`},
		"the key in another case": {[]corev1.Taint{{Key: "AADPodIdentity.k8s.io/agent-not-ready"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "7"}, Spec: corev1.NodeSpec{Taints: test.taints}}
			before := node.DeepCopy()
			got, err := startuptaint.Patch(node, key)
			if err != nil || string(got) != test.want || startuptaint.On(node.Spec.Taints, key) != (test.want != "") {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
			if diff := cmp.Diff(before, node); diff != "" {
				t.Errorf("the node that was read has changed: %s", diff)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	for key, want := range map[string]bool{
		"": true, key: true, "startup": true, "example.com/agent": true,
		"a b": false, "a/b/c": false, "/x": false, "x=y:NoSchedule": false,
		"node.kubernetes.io/not-ready": false, "node.cloudprovider.kubernetes.io/uninitialized": false, "kubernetes.io/x": false,
	} {
		if err := startuptaint.CheckKey(key); (err == nil) != want {
			t.Errorf("%q: %v", key, err)
		}
	}
}
