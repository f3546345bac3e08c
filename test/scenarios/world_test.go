package scenarios_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/scenarios"
)

const (
	sentinelPrefix = "z-" // behind a story's own
	micNamespace   = "mic-system"
	micSecret      = "correct horse battery staple"
)

// world is an API server, a simulated Azure and, once it runs, the controller.
type world struct {
	config    *rest.Config
	kube      client.Client
	seen      cache.Cache // what the test looks at
	sim       *simtest.Sim
	arm       *gate
	azure     string // azure.json
	immutable []string

	mu      sync.Mutex               // protects all following fields
	changed map[string]chan struct{} // by story
	writes  map[string]*did          // of assignments, by the first part of their pods' namespaces
}

// newWorld starts all but the controller.
func newWorld(t *testing.T, stories []scenarios.Scenario) *world {
	t.Helper()
	w := &world{
		config: env.Start(t), azure: filepath.Join(t.TempDir(), "azure.json"), changed: map[string]chan struct{}{}, writes: map[string]*did{},
		sim: simtest.Start(t, azuresim.Config{State: scenarios.World(micSecret), JournalLimit: 1_000_000}),
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.arm = &gate{Transporter: w.sim.Client(), held: map[string]chan struct{}{}}
	var err error
	w.kube, err = client.New(w.config, client.Options{Scheme: env.Scheme()})
	must(err)
	text := fmt.Sprintf(`{"cloud":"AzurePublicCloud","tenantId":%q,"aadClientId":%q,"aadClientSecret":%q}`, scenarios.Tenant, scenarios.ControllerClientID, micSecret)
	must(os.WriteFile(w.azure, []byte(text), 0o600))
	must(w.kube.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: micNamespace}}))
	for _, s := range stories {
		p := scenarios.NewPlace(s)
		for name, m := range s.Given.Azure.Identities {
			if m.Immutable { // as a user might write it
				w.immutable = append(w.immutable, " "+strings.ToUpper(p.ClientID(name)))
			}
		}
	}
	w.watch(t)
	return w
}

// watch follows what the controller writes, and what it asks of Azure.
func (w *world) watch(t *testing.T) {
	t.Helper()
	var err error
	if w.seen, err = cache.New(w.config, cache.Options{Scheme: env.Scheme()}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.seen.Start(ctx); err != nil {
			t.Errorf("watching: %v", err)
		}
	})
	running.Go(func() {
		for seq := uint64(0); ; {
			e, err := w.sim.Journal.WaitAfter(ctx, seq, func(e journal.Entry) bool { return e.Surface == journal.ARM })
			if err != nil {
				return
			}
			seq = e.Seq
			w.signal(e.Path)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	for _, object := range []client.Object{&v1.AzureAssignedIdentity{}, &v1.AzureIdentityAttachment{}, &v1.AzureIdentity{}, &corev1.Event{}} {
		informer, err := w.seen.GetInformer(ctx, object)
		if err != nil {
			t.Fatal(err)
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { w.note(nil, o) },
			UpdateFunc: w.note,
			DeleteFunc: func(o any) { w.note(o, nil) },
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// note counts what was written to assignments.
func (w *world) note(from, to any) {
	w.mu.Lock()
	before, _ := from.(*v1.AzureAssignedIdentity)
	after, _ := to.(*v1.AzureAssignedIdentity)
	switch {
	case before == nil && after != nil:
		w.of(after).created++
	case before != nil && after == nil:
		w.of(before).deleted++
	case before != nil && isRewritten(before, after):
		w.of(after).rewritten++
	}
	w.mu.Unlock()
	for _, o := range []any{from, to} {
		switch object := o.(type) {
		case *v1.AzureAssignedIdentity:
			w.signal(object.Spec.PodNamespace)
		case *v1.AzureIdentityAttachment:
			w.signal(object.Spec.ResourceID)
		case client.Object:
			w.signal(object.GetNamespace())
		}
	}
}

// of are the counts of an assignment's story; mu is held.
func (w *world) of(a *v1.AzureAssignedIdentity) *did {
	story, rest, _ := strings.Cut(a.Spec.PodNamespace, "-")
	if strings.HasPrefix(rest, sentinelPrefix) {
		return w.counts(story + "-" + sentinelPrefix)
	}
	return w.counts(story + "-")
}

func (w *world) counts(prefix string) *did {
	if w.writes[prefix] == nil {
		w.writes[prefix] = &did{}
	}
	return w.writes[prefix]
}

// signal wakes the story whose prefix is in a name.
func (w *world) signal(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	story := storyOf(name)
	if changed, ok := w.changed[story]; ok {
		close(changed)
		delete(w.changed, story)
	}
}

// next is closed when something of a story changes.
func (w *world) next(story string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed[story] == nil {
		w.changed[story] = make(chan struct{})
	}
	return w.changed[story]
}

// run runs the controller until stop is called, at the latest at the test's end.
func (w *world) run(t *testing.T, install scenarios.Install) (stop func()) {
	t.Helper()
	args := []string{
		"--cloudconfig", w.azure, "--http-probe-port=0", "--prometheus-port=0", "--leader-election-duration=30s",
		"--gather-window=100ms", "--retry-min=200ms", "--retry-max=2s", "--identity-assignment-reconcile-interval=3s",
		"--quarantine-min=10m", "--quarantine-max=10m", // an edit ends it at once
		"--immutable-user-msis=" + strings.Join(w.immutable, ","), fmt.Sprintf("--forceNamespaced=%t", install.Namespaced),
	}
	options, err := mic.ParseOptions(args, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	options.Version, options.Kube, options.Transport = "test", rest.CopyConfig(w.config), w.arm
	options.Getenv = func(name string) string { return map[string]string{"MIC_POD_NAMESPACE": micNamespace}[name] }
	options.Logger = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		if options.Logger, err = obs.NewLogger(t.Output(), obs.LogOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- mic.Run(ctx, options) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("running the controller: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}
