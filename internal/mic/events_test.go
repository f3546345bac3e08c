package mic_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
)

// TestEventsAreShown: every reason of the contract is on the object that it is
// about, where `kubectl describe` finds it, and is counted.
func TestEventsAreShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	s := w.scene(t, "events", scaleSets)
	port, profile := freePort(t), freePort(t)
	options := s.options(t, "--prometheus-port="+port, "--enableProfile")
	options.ProfileAddress = "127.0.0.1:" + profile
	run(t, options)

	_, binding := s.identity(t, "demo")
	first, second := s.pod(t, "first", "demo"), s.pod(t, "second", "demo")
	s.assigned(t, first)
	s.assigned(t, second)
	s.described(t, binding, events.BindingApplied, "events/first")
	s.kill(t, second)
	s.unassigned(t, second)
	s.described(t, binding, events.BindingRemoved, "events/second")

	missing := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "missing"}, Spec: v1.AzureIdentitySpec{ResourceID: s.id("missing"), ClientID: micClientID}}
	s.create(t, missing)
	broken := s.bind(t, "missing", "missing")
	s.pod(t, "third", "missing")
	s.described(t, broken, events.BindingApplyError, "events/third")

	w.forbidWrites(t)
	fourth := s.pod(t, "fourth", "demo")
	assigned := s.assignment(t, fourth, "that exists", func(v1.AzureAssignedIdentity) bool { return true })
	s.described(t, &assigned, events.StatusUpdateError, "forbidden")
	s.kill(t, first)
	s.described(t, binding, events.BindingRemoveError, "forbidden")

	for _, pattern := range []string{
		`aadpodidentity_mic_cycle_count [1-9]`, `mic_leader 1`, `mic_stuck_reconciles 0`, `aadpodidentity_assigned_identity_addition_count [1-9]`,
		`aadpodidentity_kubernetes_api_operations_errors_count\{operation_type="update_azure_assigned_identity_status"\} [1-9]`,
		`aadpodidentity_kubernetes_api_operations_errors_count\{operation_type="assigned_identity_deletion"\} [1-9]`,
		`workqueue_depth\{controller="attachment",name="attachment",priority="[-0-9]*"\} [0-9]`,
	} {
		line := regexp.MustCompile("(?m)^" + pattern)
		get(t, "http://127.0.0.1:"+port+"/metrics", func(status int, body string) bool { return status == http.StatusOK && line.MatchString(body) })
	}
	if status, body := fetch(t, "http://127.0.0.1:"+profile+"/debug/pprof/"); status != http.StatusOK || !strings.Contains(body, "goroutine") {
		t.Errorf("pprof answers %d", status)
	}
}

// forbidWrites takes the rights to write the state of assignments and to delete
// them.
func (w *world) forbidWrites(t *testing.T) {
	t.Helper()
	edit(t, w, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "mic"}}, func(role *rbacv1.ClusterRole) {
		for i, rule := range role.Rules {
			if slices.Contains(rule.Resources, "azureassignedidentities") {
				role.Rules[i].Verbs = []string{"list", "watch", "create", "update"}
			}
		}
	})
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for range ticker.C {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:               micUser,
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "patch", Group: v1.Group, Resource: "azureassignedidentities", Namespace: "default"},
		}}
		w.create(t, review)
		if !review.Status.Allowed {
			return
		}
	}
}
