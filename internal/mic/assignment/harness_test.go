package assignment_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// enough is how long a test waits for what must come.
const enough = 30 * time.Second

// traffic is what a controller sends to the API server. Watches can be held, so
// that its cache falls behind.
type traffic struct {
	next http.RoundTripper

	mu     sync.Mutex
	writes []*written
	lists  map[string]int           // finished lists by path and query
	held   map[string]chan struct{} // by the plural name of the kind
	heard  chan struct{}            // closed and renewed at every request
}

// written is a request that is no read; its status is 0 until it is answered.
type written struct {
	method, path string
	status       int
}

func (w *written) String() string { return fmt.Sprintf("%s %d %s", w.method, w.status, w.path) }

func (f *traffic) RoundTrip(r *http.Request) (*http.Response, error) {
	write := &written{method: r.Method, path: r.URL.Path}
	if r.Method != http.MethodGet && !strings.Contains(r.URL.Path, "/events") {
		f.mu.Lock()
		f.writes = append(f.writes, write)
		f.mu.Unlock()
	}
	response, err := f.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	write.status = response.StatusCode
	kind := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case r.Method != http.MethodGet:
	case r.URL.Query().Get("watch") != "":
		response.Body = &heldBody{ReadCloser: response.Body, wait: func() { f.wait(r.Context(), kind) }}
	default:
		f.lists[kind+"?"+r.URL.Query().Get("fieldSelector")]++
	}
	close(f.heard)
	f.heard = make(chan struct{})
	return response, nil
}

// hold keeps the kind's events from the controller until release is called.
func (f *traffic) hold(kind string) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gate := make(chan struct{})
	f.held[kind] = gate
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.held, kind)
		close(gate)
	}
}

func (f *traffic) wait(ctx context.Context, kind string) {
	f.mu.Lock()
	gate := f.held[kind]
	f.mu.Unlock()
	if gate == nil {
		return
	}
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

// sent returns the writes so far that contain all words.
func (f *traffic) sent(words ...string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
next:
	for _, write := range f.writes {
		for _, word := range words {
			if !strings.Contains(write.String(), word) {
				continue next
			}
		}
		out = append(out, write.String())
	}
	return out
}

// await waits until the requests so far are as ok says; ok holds the lock.
func (f *traffic) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(enough)
	for {
		f.mu.Lock()
		heard, done := f.heard, ok()
		f.mu.Unlock()
		if done {
			return
		}
		select {
		case <-heard:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// heldBody is a watch's stream: what was read is passed on once nothing holds it.
type heldBody struct {
	io.ReadCloser
	wait func()
}

func (b *heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.wait()
	return n, err
}

// world is an API server, and a test's own client of it.
type world struct {
	config *rest.Config
	kube   client.WithWatch
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := env.Start(t)
	kube, err := client.NewWithWatch(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return &world{config: config, kube: kube}
}

// run runs the controller of assignments alone until stop is called, at the
// latest at the test's end.
func (w *world) run(t *testing.T, namespaced bool) (sent *traffic, stop func()) {
	t.Helper()
	sent = &traffic{lists: map[string]int{}, held: map[string]chan struct{}{}, heard: make(chan struct{})}
	config := rest.CopyConfig(w.config)
	config.QPS = -1
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		if sent.next == nil {
			sent.next = next
		}
		return sent
	})
	scope, err := kube.Scope("mic-system")
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme: env.Scheme(), Cache: scope, Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	recorder, err := events.New(ctx, config, env.Scheme())
	if err != nil {
		t.Fatal(err)
	}
	reconciler := assignment.NewReconciler(assignment.Options{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: recorder, Namespaced: namespaced})
	for _, err := range []error{kube.AddIndexes(ctx, mgr.GetFieldIndexer(), nil), reconciler.Register(mgr)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ran := make(chan error, 1)
	go func() { ran <- mgr.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("running the controller: %v", err)
		}
	})
	t.Cleanup(stop)
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		t.Fatal("the cache does not sync")
	}
	return sent, stop
}

func (w *world) create(t *testing.T, all ...client.Object) {
	t.Helper()
	for _, object := range all {
		if err := w.kube.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) delete(t *testing.T, object client.Object, options ...client.DeleteOption) {
	t.Helper()
	if err := w.kube.Delete(t.Context(), object, options...); err != nil {
		t.Fatal(err)
	}
}

// edit changes an object on top of what the server has.
func edit[T client.Object](t *testing.T, w *world, object T, change func(T)) {
	t.Helper()
	if err := objects.Edit(t.Context(), w.kube, object, change); err != nil {
		t.Fatal(err)
	}
}

// namespace makes a namespace, and an AzureIdentity with its binding for each
// name. A binding's selector is the namespace's name: scenes share a world.
func (w *world) namespace(t *testing.T, name string, identities ...string) {
	t.Helper()
	w.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	for _, i := range identities {
		w.identity(t, name, i, name)
	}
}

func (w *world) identity(t *testing.T, namespace, name, selector string) (*v1.AzureIdentity, *v1.AzureIdentityBinding) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	object := &v1.AzureIdentity{ObjectMeta: meta, Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "ABC"}}
	binding := &v1.AzureIdentityBinding{ObjectMeta: meta, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: name, Selector: selector}}
	w.create(t, object, binding)
	return object, binding
}

// pod makes a pod that the namespace's bindings select.
func (w *world) pod(t *testing.T, namespace, name, node string) *corev1.Pod {
	t.Helper()
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1.PodLabel: namespace}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	w.create(t, object)
	return object
}

// kill removes a pod as the kubelet does at its end.
func (w *world) kill(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	w.delete(t, pod, client.GracePeriodSeconds(0))
}

// assignments waits until those of the pods of a namespace are as ok says.
func (w *world) assignments(t *testing.T, namespace, what string, ok func([]v1.AzureAssignedIdentity) bool) []v1.AzureAssignedIdentity {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	var found []v1.AzureAssignedIdentity
	err := objects.AwaitList(ctx, w.kube, &v1.AzureAssignedIdentityList{}, func(l *v1.AzureAssignedIdentityList) bool {
		found = nil
		for _, a := range l.Items {
			if a.Spec.PodNamespace == namespace {
				found = append(found, a)
			}
		}
		return ok(found)
	})
	if err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
	return found
}

func count(n int) func([]v1.AzureAssignedIdentity) bool {
	return func(all []v1.AzureAssignedIdentity) bool { return len(all) == n }
}

// only waits until the namespace's pods have exactly one assignment.
func (w *world) only(t *testing.T, namespace string) *v1.AzureAssignedIdentity {
	t.Helper()
	return &w.assignments(t, namespace, "one assignment", count(1))[0]
}

// attached says of every assignment of the namespace's pods what the attachment
// would say in the end.
func (w *world) attached(t *testing.T, namespace string) {
	t.Helper()
	all := w.assignments(t, namespace, "the assignments", func(all []v1.AzureAssignedIdentity) bool { return len(all) > 0 })
	for _, a := range all {
		if a.Status.Status == v1.AssignedIDCreated {
			edit(t, w, &a, func(a *v1.AzureAssignedIdentity) { a.Status.Status = v1.AssignedIDAssigned })
		}
	}
}

// marker makes the controller do one thing more, so that whatever it had to do
// before is done.
func (w *world) marker(t *testing.T, scene string) {
	t.Helper()
	name := fmt.Sprintf("%s-marker-%d", scene, time.Now().UnixNano())
	w.namespace(t, name, "marker")
	w.pod(t, name, "marker", "n")
	w.only(t, name)
}
