package chart_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/untaint"
)

const taintKey = "example.com/agent"

// bound returns a client with a component's own token, bound to a pod of its on
// the node, as the kubelet mounts one.
func (c cluster) bound(t *testing.T, component, node string) kubernetes.Interface {
	t.Helper()
	admin, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		t.Fatal(err)
	}
	account := "aad-pod-identity-" + component
	pod, err := admin.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: component + "-"},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	request, err := admin.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = request.Status.Token
	out, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// node makes a node with the startup taint and another one.
func (c cluster) node(t *testing.T, name string) {
	t.Helper()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}},
		Spec: corev1.NodeSpec{ProviderID: "azure:///x/" + name, Taints: []corev1.Taint{
			{Key: "other", Value: "v", Effect: corev1.TaintEffectNoSchedule}, {Key: taintKey, Effect: corev1.TaintEffectNoSchedule},
		}},
	}
	taints := node.Spec.Taints
	if err := c.kube.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	node.Spec.Taints = taints // the API server adds its own to a node that is new
	if err := c.kube.Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.kube.Delete(context.WithoutCancel(t.Context()), node); err != nil {
			t.Error(err)
		}
	})
}

// patches are merge patches of a node, and the words with which the policy must
// refuse them; none if it must not.
func patches() map[string]struct{ patch, words string } {
	const ours, other = `{"key":"example.com/agent","effect":"NoSchedule"}`, `{"key":"other","value":"v","effect":"NoSchedule"}`
	return map[string]struct{ patch, words string }{
		"the startup taint goes":           {`{"spec":{"taints":[` + other + `]}}`, ""},
		"nothing changes":                  {`{"spec":{"taints":[` + other + `,` + ours + `]}}`, ""},
		"another taint goes":               {`{"spec":{"taints":[` + ours + `]}}`, "only example.com/agent may be taken away"},
		"all taints go":                    {`{"spec":{"taints":null}}`, "only example.com/agent may be taken away"},
		"another taint changes":            {`{"spec":{"taints":[{"key":"other","value":"w","effect":"NoSchedule"}]}}`, "only example.com/agent may be taken away"},
		"another taint comes":              {`{"spec":{"taints":[` + other + `,{"key":"new","effect":"NoExecute"}]}}`, "only example.com/agent may be taken away"},
		"the startup taint gets an effect": {`{"spec":{"taints":[` + other + `,{"key":"example.com/agent","effect":"NoExecute"}]}}`, "only example.com/agent may be taken away"},
		"a label comes":                    {`{"metadata":{"labels":{"x":"y"}},"spec":{"taints":[` + other + `]}}`, "nothing may change in a node's metadata"},
		"a label goes":                     {`{"metadata":{"labels":null},"spec":{"taints":[` + other + `]}}`, "nothing may change in a node's metadata"},
		"an annotation changes":            {`{"metadata":{"annotations":{"c":"e"}},"spec":{"taints":[` + other + `]}}`, "nothing may change in a node's metadata"},
		"a finalizer comes":                {`{"metadata":{"finalizers":["x/y"]},"spec":{"taints":[` + other + `]}}`, "nothing may change in a node's metadata"},
		"an owner comes":                   {`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]},"spec":{"taints":[` + other + `]}}`, "nothing may change in a node's metadata"},
		"the node is cordoned":             {`{"spec":{"unschedulable":true,"taints":[` + other + `]}}`, "nothing but taints may change in a node's spec"},
		"the node gets addresses":          {`{"spec":{"podCIDR":"10.0.0.0/24","podCIDRs":["10.0.0.0/24"],"taints":[` + other + `]}}`, "nothing but taints may change in a node's spec"},
	}
}

// startupTaint tries, with the rights of the component that does it, what the
// policy allows and what it refuses.
func (c cluster) startupTaint(t *testing.T) {
	for mode, component := range map[string]string{"standard": "mic", "managed": "nmi"} {
		t.Run(mode, func(t *testing.T) {
			r := render(t, `startupTaintKey="`+taintKey+`"`, `operationMode="`+mode+`"`)
			c.authorize(t, r)
			c.install(t, r, "ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
			mine, far := mode+"-mine", mode+"-far"
			c.node(t, mine)
			c.node(t, far)
			client := c.bound(t, component, mine)
			c.untilFenced(t, client, mine)
			for name, test := range patches() {
				t.Run(name, func(t *testing.T) {
					refused(t, try(t, client, mine, test.patch), test.words)
				})
			}
			own := ""
			if component == "nmi" {
				own = "NMI may change its own node only"
			}
			refused(t, try(t, client, far, patches()["the startup taint goes"].patch), own)
			if component == "nmi" {
				c.unbound(t, mine)
				c.untaints(t, client, mine)
			}
		})
	}
}

// try sends a patch that changes nothing in the end.
func try(t *testing.T, client kubernetes.Interface, node, patch string) error {
	t.Helper()
	_, err := client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(patch), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// refused checks that the policy refused with these words, or did not if there are
// none.
func refused(t *testing.T, err error, words string) {
	t.Helper()
	switch {
	case words == "" && err != nil:
		t.Errorf("it is refused: %v", err)
	case words != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy")):
		t.Errorf("got %v, want it refused with %q", err, words)
	}
}

// untilFenced waits until the API server has taken the policy in, of which no
// event tells.
func (c cluster) untilFenced(t *testing.T, client kubernetes.Interface, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for try(t, client, node, `{"metadata":{"labels":{"fenced":"no"}}}`) == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the policy has no effect")
		}
	}
}

// unbound tries with a token of NMI's ServiceAccount that no pod holds, and so
// names no node.
func (c cluster) unbound(t *testing.T, node string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.account("nmi"))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, try(t, client, node, patches()["the startup taint goes"].patch), "NMI may change its own node only")
}

// untaints lets NMI's own code do it, once it is ready.
func (c cluster) untaints(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	looks := 0
	untaint.Run(t.Context(), untaint.Options{
		Nodes: client.CoreV1().Nodes(), Node: name, Key: taintKey, Log: slog.New(slog.DiscardHandler),
		Ready: func(context.Context) error {
			if looks++; looks < 2 {
				return fmt.Errorf("not yet")
			}
			return nil
		},
	})
	var node corev1.Node
	if err := c.kube.Get(t.Context(), types.NamespacedName{Name: name}, &node); err != nil {
		t.Fatal(err)
	}
	left, err := json.Marshal(node.Spec.Taints)
	if err != nil || string(left) != `[{"key":"other","value":"v","effect":"NoSchedule"}]` {
		t.Errorf("taints %s, %v", left, err)
	}
}
