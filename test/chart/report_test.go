package chart_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report/nodereport"
)

// agentOn makes a node and the agent's pod on it, and returns a configuration
// with the token that the kubelet would give that pod. An empty node gives a
// token that is bound to nothing.
func (c cluster) agentOn(t *testing.T, node string) *rest.Config {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if node != "" {
		object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "nmi-" + node},
			Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "aad-pod-identity-nmi", Containers: []corev1.Container{{Name: "nmi", Image: "nmi"}}},
		}
		for _, made := range []client.Object{object, pod} {
			if err := c.kube.Create(t.Context(), made); err != nil {
				t.Fatal(err)
			}
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "aad-pod-identity-nmi"}}
	if err := c.kube.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = request.Status.Token
	return config
}

// facts are how an agent is, and change.
type facts struct{ unready atomic.Pointer[error] }

func (f *facts) now(context.Context) nodereport.Facts {
	out := nodereport.Facts{Version: "v1.2.3", Mode: "standard", Target: "127.0.0.1:2579", Proof: "link", Probed: time.Unix(1000, 0)}
	if err := f.unready.Load(); err != nil {
		out.Unready = *err
	}
	return out
}

// writes runs a writer, and returns what waits for its next write.
func writes(t *testing.T, config *rest.Config, node string, f *facts) func() error {
	t.Helper()
	wrote := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	writer, err := nodereport.New(nodereport.Options{
		Config: config, Namespace: namespace, Node: node, Facts: f.now, Look: 10 * time.Millisecond, Rest: 10 * time.Millisecond,
		Wrote: func(err error) {
			select {
			case wrote <- err:
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { writer.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return func() error { return <-wrote }
}

// reports lets agents write with real tokens, bound to pods on nodes.
func (c cluster) reports(t *testing.T) {
	rendered := render(t)
	c.authorize(t, rendered)
	c.install(t, rendered, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "aad-pod-identity-nmi"}}
	if err := c.kube.Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	one, two := c.agentOn(t, "node-one"), c.agentOn(t, "node-two")

	// The policy is in force a moment after it was made.
	foreign := writes(t, two, "node-three", &facts{})
	denied := func(next func() error, what string) {
		for range 2000 {
			if err := next(); apierrors.IsForbidden(err) && strings.Contains(err.Error(), "its own node only") {
				return
			} else if err != nil && !apierrors.IsForbidden(err) {
				t.Fatalf("%s: %v", what, err)
			} else if err == nil {
				// Written before the policy was in force: it is written again.
				next = writes(t, two, "node-three", &facts{})
			}
		}
		t.Errorf("%s is not denied", what)
	}
	denied(foreign, "another node's report")

	f := &facts{}
	next := writes(t, one, "node-one", f)
	if err := next(); err != nil {
		t.Fatal(err)
	}
	report := &v1.AzureIdentityNodeReport{}
	key := client.ObjectKey{Namespace: namespace, Name: "node-one"}
	if err := c.kube.Get(t.Context(), key, report); err != nil {
		t.Fatal(err)
	}
	if s := report.Status; s.Version != "v1.2.3" || s.CallerProof != "link" || !s.Ready || len(s.Conditions) != 4 || s.LastProbe.Unix() != 1000 {
		t.Errorf("got %+v", s)
	}
	if owners := report.OwnerReferences; len(owners) != 1 || owners[0].Kind != "Node" || owners[0].Name != "node-one" || owners[0].UID == "" {
		t.Errorf("owned by %+v", owners)
	}
	broken := context.DeadlineExceeded
	f.unready.Store(&broken)
	if err := next(); err != nil {
		t.Fatal(err)
	}
	if err := c.kube.Get(t.Context(), key, report); err != nil || report.Status.Ready {
		t.Errorf("not ready, and reported as %+v, %v", report.Status, err)
	}

	// What is there is no more another agent's to change than to make.
	denied(writes(t, two, "node-one", &facts{}), "the status of another node's report")
	denied(writes(t, c.agentOn(t, ""), "node-one", &facts{}), "a report by a token of no node")
	if err := c.kube.Get(t.Context(), key, report); err != nil || report.Status.Ready {
		t.Errorf("the report was changed: %+v, %v", report.Status, err)
	}
}
