package owner_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/leave/owner"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

const namespace, setName = "default", "nmi"

// cluster is an API server whose user may do what the chart gives an agent.
type cluster struct {
	*testing.T
	admin client.Client
	agent *rest.Config
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	config := env.Start(t)
	admin, err := client.New(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	c := cluster{T: t, admin: admin, agent: rest.CopyConfig(config)}
	c.agent.Impersonate = rest.ImpersonationConfig{UserName: "nmi"}
	c.grant("pods", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list", "watch"}})
	c.grant("own", rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, ResourceNames: []string{setName}, Verbs: []string{"get"}})
	return c
}

func (c cluster) grant(name string, rule rbacv1.PolicyRule) {
	c.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	c.must(c.admin.Create(c.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{rule}}))
	c.must(c.admin.Create(c.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "nmi"}},
	}))
}

func (c cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "nmi"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "nmi", Image: "nmi"}}},
	}
}

// daemonSet makes one that stays for a while after it was deleted, as it does
// until its pods have ended.
func (c cluster) daemonSet(finalizers ...string) *appsv1.DaemonSet {
	c.Helper()
	set := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: setName, Finalizers: finalizers},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: template().Labels}, Template: template()},
	}
	c.must(c.admin.Create(c.Context(), set))
	return set
}

// pod makes a pod with the given owner; nil for none.
func (c cluster) pod(name string, owned *metav1.OwnerReference) identity.Key {
	c.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: template().Spec}
	if owned != nil {
		pod.OwnerReferences = []metav1.OwnerReference{*owned}
	}
	c.must(c.admin.Create(c.Context(), pod))
	return identity.Key{Namespace: namespace, Name: name}
}

func (c cluster) find(config *rest.Config, pod identity.Key, want bool) {
	c.Helper()
	got, err := owner.Find(c.Context(), config, pod)
	if err != nil || got.Gone != want || got.Name != setName || got.Namespace != namespace {
		c.Errorf("got %+v, %v, want gone %t", got, err, want)
	}
}

// unknown fails the test unless nothing is said but why.
func (c cluster) unknown(config *rest.Config, pod identity.Key, words string) {
	c.Helper()
	got, err := owner.Find(c.Context(), config, pod)
	if err == nil || got != (owner.DaemonSet{}) || !strings.Contains(err.Error(), words) {
		c.Errorf("got %+v, %v, want an error of: %s", got, err, words)
	}
}

func TestFind(t *testing.T) {
	c := newCluster(t)
	set := c.daemonSet("example.com/pods-are-ending")
	pod := c.pod("nmi-1", metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet")))
	c.find(c.agent, pod, false)

	c.must(c.admin.Delete(t.Context(), set))
	c.find(c.agent, pod, true) // it is being deleted
	set.Finalizers = nil
	c.must(c.admin.Patch(t.Context(), set, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))))
	c.find(c.agent, pod, true) // it is gone

	c.daemonSet()
	c.find(c.agent, pod, false) // another one is there, and brings an agent
}

func TestFindDoesNotGuess(t *testing.T) {
	c := newCluster(t)
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "another", UID: "00000000-0000-0000-0000-000000000000"}}
	kind := appsv1.SchemeGroupVersion.WithKind
	c.unknown(c.agent, identity.Key{Namespace: namespace, Name: "none"}, "no such pod")
	c.unknown(c.agent, c.pod("lonely", nil), "belongs to no DaemonSet")
	c.unknown(c.agent, c.pod("deployed", metav1.NewControllerRef(set, kind("ReplicaSet"))), "belongs to no DaemonSet")
	// One that it may not read is not one that is gone.
	c.unknown(c.agent, c.pod("foreign", metav1.NewControllerRef(set, kind("DaemonSet"))), "forbidden")

	set.Name = setName
	pod := c.pod("nmi-1", metav1.NewControllerRef(set, kind("DaemonSet")))
	c.find(c.agent, pod, true)
	nobody := rest.CopyConfig(c.agent)
	nobody.Impersonate.UserName = "nobody"
	c.unknown(nobody, pod, "forbidden")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := owner.Find(ctx, c.agent, pod); err == nil {
		t.Errorf("without an answer: got %+v", got)
	}
}

// TestSomebodyElsesNotFound: a server that is not Kubernetes knows nothing of
// DaemonSets, and says so with the same code.
func TestSomebodyElsesNotFound(t *testing.T) {
	const pods = `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{},"items":[
		{"metadata":{"name":"p","namespace":"n","ownerReferences":[{"apiVersion":"apps/v1","kind":"DaemonSet","name":"d","uid":"u","controller":true}]}}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/pods") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(pods))
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	got, err := owner.Find(t.Context(), &rest.Config{Host: server.URL}, identity.Key{Namespace: "n", Name: "p"})
	if err == nil || got.Gone {
		t.Errorf("got %+v, %v, want an error", got, err)
	}
}
