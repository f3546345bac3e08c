package legacy_test

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/resolve"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/watch"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/legacy"
)

const resourceID = "/subscriptions/S/resourcegroups/Group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"

// pods takes no pods: the tests ask for one by name.
type pods struct{}

func (pods) Set(*corev1.Pod) error { return nil }
func (pods) Remove(*corev1.Pod)    {}
func (pods) Delete(identity.Key)   {}

// TestNewAgentReadsTheOldControllersObjects: at every step of an assignment's
// life under the old controller, our agent on the node sees what an old one sees.
func TestNewAgentReadsTheOldControllersObjects(t *testing.T) {
	config := env.Start(t)
	kube, err := client.New(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range []client.Object{
		&v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "demo", Annotations: map[string]string{"note": "x"}}, Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "ABC"}},
		&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "demo"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "web"}},
	} {
		if err := kube.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	old, err := legacy.New(config)
	if err != nil {
		t.Fatal(err)
	}
	store, err := watch.New(config, watch.Options{
		Node: "n0", Assigned: true, Pods: pods{}, PodTransform: func(object any) (any, error) { return object, nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := startAgent(t, store)
	a := legacy.Assignment{Namespace: "default", From: "default", Identity: "demo", Binding: "demo", Pod: "web-0", PodNamespace: "apps", Node: "n0"}
	var left legacy.Object
	for _, step := range []struct {
		name   string
		do     func(context.Context) error
		reason v1.Reason // empty: it gets a token
		gone   bool
	}{
		{name: "created", do: func(ctx context.Context) error { return old.Create(ctx, a) }, reason: v1.ReasonNotAttached},
		{name: "assigned", do: func(ctx context.Context) error { return old.SetStatus(ctx, a, "Assigned") }},
		{name: "as before 1.5", do: func(ctx context.Context) error { return old.SetStatus(ctx, a, "") }},
		{name: "put again", do: func(ctx context.Context) error { return old.Update(ctx, a) }, reason: v1.ReasonNotAttached},
		{name: "assigned again", do: func(ctx context.Context) error { return old.SetStatus(ctx, a, "Assigned") }},
		{name: "unassigned", do: func(ctx context.Context) error { return old.SetStatus(ctx, a, "Unassigned") }, reason: v1.ReasonNotAssigned},
		{name: "deleted, held by the finalizer", do: func(ctx context.Context) error {
			left, err = old.Strike(ctx, a)
			return err
		}, reason: v1.ReasonNotAssigned},
		{name: "released", do: func(ctx context.Context) error { return old.Release(ctx, a, left) }, reason: v1.ReasonNotAssigned, gone: true},
	} {
		if err := step.do(t.Context()); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		_, err := old.Get(t.Context(), a)
		if legacy.Is(err, http.StatusNotFound) != step.gone {
			t.Errorf("%s: reading the object: %v", step.name, err)
		}
		seen(step.name, step.reason)
		tokens, err := old.Tokens(t.Context(), "n0", "apps", "web-0")
		if err != nil || (len(tokens) == 1) != (step.reason == "") {
			t.Errorf("%s: an old agent has %v, %v", step.name, tokens, err)
		}
	}
}

// startAgent runs the watches of our agent. What it returns waits until the agent
// would answer pod apps/web-0 so.
func startAgent(t *testing.T, store *watch.Store) func(step string, reason v1.Reason) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		store.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	pod := binding.Pod{Namespace: "apps", Name: "web-0", Labels: map[string]string{v1.PodLabel: "web"}}
	ask := func() v1.Reason {
		choice, refused := resolve.Resolve(resolve.Query{}, resolve.Standard(resolve.StandardInput{
			Pod: pod, Node: "n0", Catalog: store, Assigned: store.Assigned(identity.Key{Namespace: "apps", Name: "web-0"}),
		}), store)
		if refused != nil {
			return refused.Reason
		}
		if got := choice.Identities[0]; !strings.EqualFold(got.ResourceID.String(), resourceID) || !got.ClientID.Matches("abc") {
			t.Errorf("it would ask for %+v", got)
		}
		return ""
	}
	return func(step string, reason v1.Reason) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			changed := store.Changed()
			got := ask()
			if got == reason {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%s: our agent says %q, want %q", step, got, reason)
			}
		}
	}
}
