package mic_test

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
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
