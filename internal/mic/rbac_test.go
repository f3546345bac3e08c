package mic_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// rights are exactly what the controller may do in these tests: everywhere, in
// its own namespace, and in the namespace of its Lease.
func rights() (everywhere, own, lease []rbacv1.PolicyRule) {
	everywhere = []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "nodes"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{v1.Group}, Resources: []string{"azureidentities", "azureidentitybindings"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{v1.Group}, Resources: []string{"azureidentities/status", "azureidentitybindings/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{v1.Group}, Resources: []string{"azureassignedidentities"}, Verbs: []string{"list", "watch", "create", "update", "patch", "delete"}},
	}
	own = []rbacv1.PolicyRule{
		{APIGroups: []string{v1.Group}, Resources: []string{"azureidentityattachments"}, Verbs: []string{"get", "list", "watch", "create", "update", "delete"}},
		{APIGroups: []string{v1.Group}, Resources: []string{"azureidentityattachments/status"}, Verbs: []string{"patch"}},
	}
	lease = []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"endpoints"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"endpoints"}, ResourceNames: []string{"aad-pod-identity-mic"}, Verbs: []string{"get", "update"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{"aad-pod-identity-mic"}, Verbs: []string{"get", "update"}},
	}
	return everywhere, own, lease
}

// authorize gives the controller its rights and no others, so that every test
// here also tests that they are enough.
func (w *world) authorize(t *testing.T) {
	t.Helper()
	everywhere, own, lease := rights()
	subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: micUser}}
	objects := []client.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "mic"}, Rules: everywhere},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "mic"}, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mic"}},
	}
	for namespace, rules := range map[string][]rbacv1.PolicyRule{micNamespace: own, "default": lease} {
		objects = append(objects,
			&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "mic"}, Rules: rules},
			&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "mic"}, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "mic"}})
	}
	w.create(t, objects...)
}

// TestRightsAreEnforced makes sure that the others mean something.
func TestRightsAreEnforced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	config := rest.CopyConfig(w.config)
	config.Impersonate.UserName = micUser
	kube, err := client.New(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	if err := kube.List(t.Context(), &corev1.PodList{}); err != nil {
		t.Errorf("listing pods: %v", err)
	}
	if err := kube.List(t.Context(), &corev1.SecretList{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing secrets: %v, want it forbidden", err)
	}
	if err := kube.List(t.Context(), &v1.AzureIdentityAttachmentList{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing records of every namespace: %v, want it forbidden", err)
	}
}
