package nmi

import (
	"fmt"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// rights are all that the agent needs in a mode.
func rights(mode string) []rbacv1.PolicyRule {
	kinds := []string{"azureidentities", "azureidentitybindings", "azurepodidentityexceptions"}
	if mode == "standard" {
		kinds = append(kinds, "azureassignedidentities")
	}
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}},
		{APIGroups: []string{v1.Group}, Resources: kinds, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{v1.Group}, Resources: []string{"azureidentitynodereports"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{v1.Group}, Resources: []string{"azureidentitynodereports/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, ResourceNames: []string{daemonSet}, Verbs: []string{"get"}},
	}
}

// as returns a configuration with the rights of a mode and no others.
func (c *cluster) as(mode string) *rest.Config {
	c.t.Helper()
	name := "nmi-" + mode
	c.apply(
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rights(mode)},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}},
		})
	out := rest.CopyConfig(c.config)
	out.Impersonate = rest.ImpersonationConfig{UserName: name}
	return out
}

func testRights(t *testing.T, c *cluster) {
	_, upstream := azure(t)
	for i, mode := range []string{"standard", "managed"} {
		ns := c.namespace("rights-" + mode)
		one, two := azureIdentity(ns, 1), azureIdentity(ns, 2)
		c.apply(one, two, azureBinding(ns, 1, "app"), azureBinding(ns, 2, "app"))
		address := fmt.Sprint("127.0.20.", i+1)
		pod := c.pod(ns, "pod", "app", address)
		if mode == "standard" {
			c.apply(assignment(pod, one, v1.AssignedIDAssigned), assignment(pod, two, v1.AssignedIDAssigned))
		}
		events := c.events(ns)
		config := c.as(mode)
		r := start(t, config, upstream, "--operation-mode="+mode).ready()
		if got := r.get(address, tokenPath+"?resource="+resource); got.status != 200 {
			t.Errorf("%s: %d %s", mode, got.status, got.body)
		}
		if event := events(); event.Reason != string(v1.ReasonSeveralIdentities) {
			t.Errorf("%s: event %+v", mode, event)
		}
		testLeaving(t, c, config, ns)
	}
}
