//go:build e2e

package lab_test

import (
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// TestSeveralIdentities: each is to be had by name. A pod that asks for none in
// particular gets the first by namespace and name, and is told so.
func TestSeveralIdentities(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	alpha, beta := newIdentity(t, namespace, "alpha"), newIdentity(t, namespace, "beta")
	bind(t, namespace, "beta", beta)
	bind(t, namespace, "alpha", alpha)
	addBinding(t, namespace, "alpha-too", "alpha", "both")
	addBinding(t, namespace, "beta-too", "beta", "both")
	for node := range resources(t) {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			pod := runPod(t, newPod(namespace, "both-"+node, "both", node))
			awaitAssigned(t, pod, "alpha")
			awaitAssigned(t, pod, "beta")
			wantToken(t, pod, alpha, "&client_id="+alpha.ClientID)
			wantToken(t, pod, beta, "&client_id="+beta.ClientID)
			wantToken(t, pod, beta, "&mi_res_id="+beta.ID)
			wantToken(t, pod, alpha, "")
			warning := awaitWarning(t, pod, v1.ReasonSeveralIdentities)
			if !strings.Contains(warning.Message, namespace+"/alpha") {
				t.Errorf("the warning does not say which identity the pod gets: %s", warning.Message)
			}
		})
	}
}

// TestAnotherNamespace: by default a binding selects pods of all namespaces. An
// identity that is annotated is for its own namespace alone.
func TestAnotherNamespace(t *testing.T) {
	t.Parallel()
	owner, other := newNamespace(t), newNamespace(t)
	open, closed := newIdentity(t, owner, "open"), newIdentity(t, owner, "closed")
	bind(t, owner, "open", open)
	apply(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: closed, namespace: %[1]s, annotations: {aadpodidentity.k8s.io/Behavior: namespaced}}
spec: {type: 0, resourceID: %[2]s, clientID: %[3]s}
`, owner, closed.ID, closed.ClientID)
	// The selectors are the test's own, since other tests' pods are selected, too.
	addBinding(t, owner, "open-to-all", "open", owner+"-open")
	addBinding(t, owner, "closed", "closed", owner+"-closed")

	guest := runPod(t, newPod(other, "guest", owner+"-open", "node1"))
	awaitAssigned(t, guest, "open")
	wantToken(t, guest, open, "")

	// The owner's pod on the same node has the identity attached, so that only
	// the rule stands between the stranger and the token.
	resident := runPod(t, newPod(owner, "resident", owner+"-closed", "node2"))
	stranger := runPod(t, newPod(other, "stranger", owner+"-closed", "node2"))
	awaitAssigned(t, resident, "closed")
	wantToken(t, resident, closed, "")
	wantRefusal(t, stranger, "", http.StatusForbidden, "namespace")
	wantRefusal(t, stranger, "&client_id="+closed.ClientID, http.StatusForbidden, "")
	awaitGone(t, of(stranger))
}

// TestException: an excepted pod is the node to the metadata service, which gets
// what the program asked, in the same parameters.
func TestException(t *testing.T) {
	t.Parallel()
	namespace, nodes := newNamespace(t), nodesIdentity()
	apply(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzurePodIdentityException
metadata: {name: addon, namespace: %s}
spec: {podLabels: {lab: addon}}
`, namespace)
	for node := range resources(t) {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			pod := newPod(namespace, "excepted-"+node, "", node)
			pod.Labels["lab"] = "addon"
			pod = runPod(t, pod)
			query := "&client_id=" + nodes.ClientID + "&bypass_cache=true"
			start := journalEnd(t)
			wantToken(t, pod, nodes, query)
			wantAsked(t, start, pod.Status.HostIP, query)
			wantRefusal(t, runPod(t, newPod(namespace, "plain-"+node, "", node)), query, http.StatusBadRequest, "Identity not found")
		})
	}
}

// TestRelabelledPod: another selector is another identity, with no restart, and
// the old one is the pod's no more.
func TestRelabelledPod(t *testing.T) {
	t.Parallel()
	namespace, resourceOf := newNamespace(t), resources(t)
	for node, resource := range resourceOf {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			pod, before := boundPod(t, namespace, "before-"+node, node)
			wantToken(t, pod, before, "")
			after := newIdentity(t, namespace, "after-"+node)
			bind(t, namespace, "after-"+node, after)

			relabel(t, pod, "after-"+node)
			awaitAssigned(t, pod, "after-"+node)
			wantToken(t, pod, after, "")
			wantToken(t, pod, after, "&client_id="+after.ClientID)
			awaitGone(t, func(a *v1.AzureAssignedIdentity) bool {
				return of(pod)(a) && a.Spec.AzureIdentityRef.Name == "before-"+node
			})
			wantRefusal(t, pod, "&client_id="+before.ClientID, http.StatusForbidden, "")
			awaitOff(t, resource, before)
			wantRefusal(t, pod, "&client_id="+before.ClientID, http.StatusForbidden, "")
			if !attached(t).has(resource, after) {
				t.Error("the new identity is not on the node")
			}
		})
	}
}

// TestDeletedObjects: without its AzureIdentity, or without its binding, the pod
// has no identity any more, and its node does not carry it.
func TestDeletedObjects(t *testing.T) {
	t.Parallel()
	namespace, resourceOf := newNamespace(t), resources(t)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	for name, test := range map[string]struct {
		node    string
		deleted client.Object
		words   string
	}{
		"identity-gone":      {"node1", &v1.AzureIdentity{ObjectMeta: meta("identity-gone")}, "AzureIdentity"},
		"identity-gone-vm":   {"node3", &v1.AzureIdentity{ObjectMeta: meta("identity-gone-vm")}, "AzureIdentity"},
		"binding-gone":       {"node2", &v1.AzureIdentityBinding{ObjectMeta: meta("binding-gone")}, "no AzureIdentityBinding selects pod"},
		"binding-gone-of-vm": {"node3", &v1.AzureIdentityBinding{ObjectMeta: meta("binding-gone-of-vm")}, "no AzureIdentityBinding selects pod"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod, identity := boundPod(t, namespace, name, test.node)
			wantToken(t, pod, identity, "")
			if err := lab.Kube.Delete(t.Context(), test.deleted); err != nil {
				t.Fatal(err)
			}
			awaitGone(t, of(pod))
			awaitOff(t, resourceOf[test.node], identity)
			wantRefusal(t, pod, "", http.StatusNotFound, test.words)
			wantRefusal(t, pod, "&client_id="+identity.ClientID, http.StatusNotFound, test.words)
		})
	}
}
