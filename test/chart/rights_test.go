package chart_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	nmiwatch "github.com/aad-pod-identity/aad-pod-identity/internal/nmi/watch"
)

// patience bounds every wait for what must come.
const patience = 40 * time.Second

// user is a component's ServiceAccount in requests.
func user(component string) string {
	return "system:serviceaccount:" + namespace + ":aad-pod-identity-" + component
}

// account returns a configuration that has the rights of a component and no
// others.
func (c cluster) account(component string) *rest.Config {
	out := rest.CopyConfig(c.config)
	out.Impersonate = rest.ImpersonationConfig{UserName: user(component), Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"}}
	return out
}

// authorize makes the rendered roles and bindings real, until the test ends.
func (c cluster) authorize(t *testing.T, r rendering) {
	t.Helper()
	c.install(t, r, "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
}

// install makes the rendered objects of some kinds real, until the test ends.
func (c cluster) install(t *testing.T, r rendering, kinds ...string) {
	t.Helper()
	for _, object := range r {
		if slices.Contains(kinds, object.GetKind()) {
			if err := c.kube.Create(t.Context(), object.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := c.kube.Delete(context.WithoutCancel(t.Context()), object.DeepCopy()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// lockedBuffer is what a program logs.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// nobody is told of pods and does nothing.
type nobody struct{}

func (nobody) Set(*corev1.Pod) error { return nil }
func (nobody) Delete(identity.Key)   {}

// readsAsNMI lets NMI's own watches read with its rights alone.
func (c cluster) readsAsNMI(t *testing.T) {
	for mode, assigned := range map[string]bool{"standard": true, "managed": false} {
		t.Run(mode, func(t *testing.T) {
			c.authorize(t, render(t, `operationMode="`+mode+`"`))
			var logs lockedBuffer
			store, err := nmiwatch.New(c.account("nmi"), nmiwatch.Options{
				Node: "node", Assigned: assigned, Pods: nobody{},
				PodTransform: func(object any) (any, error) { return object, nil }, Log: slog.New(slog.NewTextHandler(&logs, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var running sync.WaitGroup
			running.Go(func() { store.Run(ctx) })
			// No event says that an empty list was read.
			for tick := time.NewTicker(20 * time.Millisecond); len(store.Unsynced()) > 0 && ctx.Err() == nil; <-tick.C {
			}
			if ctx.Err() != nil {
				t.Errorf("not read within %s: %v\n%s", patience, store.Unsynced(), logs.String())
			}
			cancel()
			running.Wait()
			if strings.Contains(logs.String(), "orbidden") {
				t.Error(logs.String())
			}
		})
	}
}

// right is a question to the API server.
type right struct{ component, verb, group, resource, namespace, name string }

func (c cluster) may(t *testing.T, r right) bool {
	t.Helper()
	resource, subresource, _ := strings.Cut(r.resource, "/")
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user(r.component), Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: r.verb, Group: r.group, Resource: resource, Subresource: subresource, Namespace: r.namespace, Name: r.name},
	}}
	if err := c.kube.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

func (c cluster) limits(t *testing.T) {
	const lease, core, uninstaller = "coordination.k8s.io", "", "nmi-uninstall"
	for mode, questions := range map[string]map[right]bool{
		"standard": {
			{"mic", "create", core, "events", "x", ""}:                                true,
			{"mic", "update", lease, "leases", "default", "aad-pod-identity-mic"}:     true,
			{"mic", "update", lease, "leases", "default", "kube-scheduler"}:           false,
			{"mic", "create", lease, "leases", namespace, ""}:                         false,
			{"mic", "create", core, "endpoints", "default", ""}:                       true,
			{"mic", "update", core, "endpoints", "default", "aad-pod-identity-mic"}:   true,
			{"mic", "update", core, "endpoints", "default", "kubernetes"}:             false,
			{"mic", "get", core, "endpoints", namespace, "aad-pod-identity-mic"}:      false,
			{"mic", "get", core, "configmaps", namespace, "aad-pod-identity-config"}:  false,
			{"mic", "delete", v1.Group, "azureidentityattachments", namespace, ""}:    true,
			{"mic", "list", v1.Group, "azureidentityattachments", "other", ""}:        false,
			{"mic", "delete", v1.Group, "azureassignedidentities", "default", ""}:     true,
			{"mic", "patch", v1.Group, "azureidentities", "x", "y"}:                   false,
			{"mic", "patch", v1.Group, "azureidentities/status", "x", "y"}:            true,
			{"mic", "get", core, "secrets", namespace, "aad-pod-identity-mic"}:        false,
			{"mic", "list", core, "secrets", "", ""}:                                  false,
			{"mic", "patch", core, "nodes", "", "node"}:                               false,
			{"mic", "create", core, "serviceaccounts/token", namespace, ""}:           false,
			{"nmi", "create", core, "events", "x", ""}:                                true,
			{"nmi", "list", v1.Group, "azureassignedidentities", "", ""}:              true,
			{"nmi", "create", v1.Group, "azureassignedidentities", "default", ""}:     false,
			{"nmi", "patch", v1.Group, "azureassignedidentities", "default", "x"}:     false,
			{"nmi", "create", v1.Group, "azurepodidentityexceptions", "default", ""}:  false,
			{"nmi", "list", v1.Group, "azureidentityattachments", namespace, ""}:      false,
			{"nmi", "get", core, "secrets", "default", "x"}:                           true,
			{"nmi", "list", core, "secrets", "", ""}:                                  false,
			{"nmi", "watch", core, "secrets", "", ""}:                                 false,
			{"nmi", "list", core, "nodes", "", ""}:                                    false,
			{"nmi", "create", core, "serviceaccounts/token", "default", "app"}:        false,
			{"nmi", "get", "apps", "daemonsets", namespace, "aad-pod-identity-nmi"}:   true,
			{"nmi", "get", "apps", "daemonsets", namespace, "x"}:                      false,
			{"nmi", "get", "apps", "daemonsets", "other", "aad-pod-identity-nmi"}:     false,
			{"nmi", "list", "apps", "daemonsets", namespace, ""}:                      false,
			{"nmi", "patch", "apps", "daemonsets", namespace, "aad-pod-identity-nmi"}: false,
			{"nmi", "patch", v1.Group, "azureidentitynodereports", namespace, "x"}:    true,
			{"nmi", "list", v1.Group, "azureidentitynodereports", namespace, ""}:      false,
			{"nmi", "delete", v1.Group, "azureidentitynodereports", namespace, "x"}:   false,
			{"nmi", "patch", v1.Group, "azureidentitynodereports", "default", "x"}:    false,

			{uninstaller, "get", "apps", "daemonsets", namespace, "aad-pod-identity-nmi"}:    true,
			{uninstaller, "delete", "apps", "daemonsets", namespace, "aad-pod-identity-nmi"}: true,
			{uninstaller, "delete", "apps", "daemonsets", namespace, "x"}:                    false,
			{uninstaller, "delete", "apps", "daemonsets", "other", "aad-pod-identity-nmi"}:   false,
			{uninstaller, "list", "apps", "daemonsets", namespace, ""}:                       false,
			{uninstaller, "create", "apps", "daemonsets", namespace, ""}:                     false,
			{uninstaller, "list", core, "pods", namespace, ""}:                               true,
			{uninstaller, "watch", core, "pods", namespace, ""}:                              true,
			{uninstaller, "delete", core, "pods", namespace, "x"}:                            false,
			{uninstaller, "list", core, "pods", "other", ""}:                                 false,
			{uninstaller, "list", v1.Group, "azureidentitynodereports", namespace, ""}:       true,
			{uninstaller, "patch", v1.Group, "azureidentitynodereports", namespace, "x"}:     false,
			{uninstaller, "delete", v1.Group, "azureidentitynodereports", namespace, "x"}:    false,
			{uninstaller, "get", core, "nodes", "", "node"}:                                  true,
			{uninstaller, "list", core, "nodes", "", ""}:                                     false,
			{uninstaller, "patch", core, "nodes", "", "node"}:                                false,
			{uninstaller, "get", core, "secrets", namespace, "x"}:                            false,
		},
		"managed": {
			{"nmi", "create", core, "events", "x", ""}:                                       true,
			{"nmi", "get", "apps", "daemonsets", namespace, "aad-pod-identity-nmi"}:          true,
			{"nmi", "list", v1.Group, "azureidentities", "", ""}:                             true,
			{"nmi", "list", v1.Group, "azureassignedidentities", "", ""}:                     false,
			{"nmi", "get", core, "secrets", "default", "x"}:                                  true,
			{"nmi", "list", core, "secrets", "", ""}:                                         false,
			{"mic", "list", core, "pods", "", ""}:                                            false,
			{uninstaller, "delete", "apps", "daemonsets", namespace, "aad-pod-identity-nmi"}: true,
		},
	} {
		t.Run(mode, func(t *testing.T) {
			c.authorize(t, render(t, `operationMode="`+mode+`"`))
			for question, want := range questions {
				if got := c.may(t, question); got != want {
					t.Errorf("%+v: allowed %t, want %t", question, got, want)
				}
			}
		})
	}
}
