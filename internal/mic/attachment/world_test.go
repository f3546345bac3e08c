package attachment_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

const (
	group      = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/MC_nodes"
	tenant     = "0a0a0a0a-0000-4000-8000-00000000000a"
	micClient  = "aaaaaaaa-0000-4000-8000-000000000001"
	micObject  = "aaaaaaaa-0000-4000-8000-000000000002"
	identities = 30
	workers    = 4
)

// world is a cluster and an Azure on the clock of a bubble of synctest, with no
// network between them: a real API server does not live on another's time, so
// that controller-runtime's own stands in for it. ARM's documented limits and
// latencies are in force.
type world struct {
	sim        *azuresim.Simulator
	control    *control.Client
	kube       client.WithWatch
	resources  []string // ARM IDs
	reconciler *attachment.Reconciler
	deaf       atomic.Pointer[string] // the method whose answers do not arrive

	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[compute.Ref] // nil: nobody leads
}

func newWorld(t *testing.T) *world {
	t.Helper()
	throttling := settings.DocumentedThrottling()
	w := &world{}
	doc := model.Document{
		Tenant:       tenant,
		Applications: []model.Application{{Name: "mic", ClientID: micClient, PrincipalID: micObject, Secrets: []model.Secret{"secret"}}},
		RoleAssignments: []model.RoleAssignment{
			{Principal: micObject, Role: "Virtual Machine Contributor", Scope: group}, {Principal: micObject, Role: "Managed Identity Operator", Scope: group},
		},
	}
	for i := range 5 {
		w.resources = append(w.resources, fmt.Sprintf("%s/providers/Microsoft.Compute/virtualMachineScaleSets/pool-%d", group, i))
		doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: w.resources[i]})
	}
	for i := range 2 {
		id := fmt.Sprintf("%s/providers/Microsoft.Compute/virtualMachines/vm-%d", group, i)
		w.resources = append(w.resources, id)
		doc.VirtualMachines = append(doc.VirtualMachines, model.VirtualMachine{ID: id})
	}
	for i := range identities {
		doc.Identities = append(doc.Identities, model.Identity{ID: identityID(fmt.Sprint(i)), ClientID: clientID(i)})
	}
	for i := range 3 {
		doc.Identities = append(doc.Identities, model.Identity{ID: identityID(fmt.Sprint("foreign-", i))})
	}
	var err error
	w.sim, err = azuresim.New(azuresim.Config{
		State: doc, JournalLimit: 1 << 20,
		Settings: settings.Settings{ARM: settings.ARM{Latency: settings.DocumentedLatency(), Throttling: &throttling}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.control = control.New("http://control", &http.Client{Transport: inMemory{w.sim.Control()}})
	w.startKube(t)
	return w
}

func identityID(name string) string {
	return group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-" + name
}

func clientID(i int) string { return fmt.Sprintf("bbbbbbbb-0000-4000-8000-%012d", i) }

func isVM(id string) bool { return strings.Contains(id, "/virtualMachines/") }

// startKube makes the cluster, with a node for each resource.
func (w *world) startKube(t *testing.T) {
	t.Helper()
	scheme, err := kube.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1.AzureIdentityAttachment{}).
		WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			object.SetUID(uuid.NewUUID()) // as the API server does
			return c.Create(ctx, object, options...)
		}})
	if err := kube.AddIndexes(t.Context(), indexer{builder}, nil); err != nil {
		t.Fatal(err)
	}
	for i, id := range w.resources {
		if !isVM(id) {
			id += "/virtualMachines/0"
		}
		builder.WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node-", i)}, Spec: corev1.NodeSpec{ProviderID: "azure://" + id}})
	}
	w.kube = builder.Build()
}

type indexer struct{ *fake.ClientBuilder }

// IndexField adds an index to the client that is being built.
func (i indexer) IndexField(_ context.Context, object client.Object, field string, extract client.IndexerFunc) error {
	i.WithIndex(object, field, extract)
	return nil
}

// lead runs a leader until stop is called, as the manager would: its context
// ends, and with it all that it does.
func (w *world) lead(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	scheme := w.kube.Scheme()
	recorder, err := events.New(ctx, &rest.Config{Host: "http://kube", QPS: -1, Transport: inMemory{http.HandlerFunc(swallow)}}, scheme)
	if err != nil {
		t.Fatal(err)
	}
	arm, err := armclient.New(armclient.Config{Cloud: "AzurePublicCloud", TenantID: tenant, ClientID: micClient, ClientSecret: "secret"}, armclient.Options{Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	w.reconciler = attachment.NewReconciler(attachment.Options{Client: w.kube, Live: w.kube, Events: recorder, ARM: arm, Namespace: "mic"})
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[compute.Ref](time.Second, 5*time.Minute))
	w.mu.Lock()
	w.queue = queue
	w.mu.Unlock()
	for _, id := range w.resources {
		queue.Add(refOf(t, id))
	}
	watcher, err := w.kube.Watch(ctx, &v1.AzureAssignedIdentityList{})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { follow(ctx, watcher, w.reconciler) })
	for range workers {
		running.Go(func() {
			for w.work(ctx, queue, w.reconciler) {
			}
		})
	}
	return func() {
		cancel()
		watcher.Stop()
		queue.ShutDown()
		running.Wait()
	}
}

// follow tells the reconciler of what the watch shows.
func follow(ctx context.Context, watcher watch.Interface, r *attachment.Reconciler) {
	for e := range watcher.ResultChan() {
		if a, ok := e.Object.(*v1.AzureAssignedIdentity); ok {
			r.Changed(ctx, a)
		}
	}
}

// work is what controller-runtime does with one key.
func (w *world) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[compute.Ref], r *attachment.Reconciler) bool {
	ref, shutdown := queue.Get()
	if shutdown {
		return false
	}
	defer queue.Done(ref)
	switch result, err := r.Reconcile(ctx, ref); {
	case err != nil:
		queue.AddRateLimited(ref)
	case result.RequeueAfter > 0:
		queue.Forget(ref)
		queue.AddAfter(ref, result.RequeueAfter)
	default:
		queue.Forget(ref)
	}
	return true
}

func (w *world) resourceOf(node string) string {
	var i int
	if _, err := fmt.Sscanf(node, "node-%d", &i); err != nil {
		return ""
	}
	return w.resources[i]
}

// changed tells the leader of an event on a node, after the gather window.
func (w *world) changed(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ref, err := compute.ParseRef(w.resourceOf(node)); err == nil {
		w.queue.AddAfter(ref, 500*time.Millisecond)
	}
}

// assign gives a pod on the resource's node an identity.
func (w *world) assign(t *testing.T, pod, on string, identity int) {
	t.Helper()
	node := fmt.Sprint("node-", slices.Index(w.resources, on))
	object := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: pod},
		Spec: v1.AzureAssignedIdentitySpec{
			Pod: pod, PodNamespace: "apps", NodeName: node,
			AzureBindingRef: &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "binding"}},
			AzureIdentityRef: &v1.AzureIdentity{
				ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: fmt.Sprint("identity-", identity)},
				Spec:       v1.AzureIdentitySpec{ResourceID: identityID(fmt.Sprint(identity)), ClientID: clientID(identity)},
			},
		},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDCreated},
	}
	if err := w.kube.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	w.changed(node)
}

// assignments are all of them, by name.
func (w *world) assignments(t *testing.T) []v1.AzureAssignedIdentity {
	t.Helper()
	var list v1.AzureAssignedIdentityList
	if err := w.kube.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func refOf(t *testing.T, id string) compute.Ref {
	t.Helper()
	out, err := compute.ParseRef(id)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// deafTo lets requests of a method reach ARM, and its answers get lost.
func (w *world) deafTo(method string) { w.deaf.Store(&method) }

func (w *world) hear() { w.deaf.Store(nil) }

// Do is the way to Azure.
func (w *world) Do(r *http.Request) (*http.Response, error) {
	response, err := inMemory{w.sim.HTTPS()}.RoundTrip(r)
	operation := strings.Contains(r.URL.Path, "/operations/")
	if deaf := w.deaf.Load(); deaf != nil && r.Method == *deaf && (operation || r.Method == http.MethodPatch) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return response, err
}

// swallow takes Events.
func swallow(writer http.ResponseWriter, r *http.Request) {
	writer.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	writer.WriteHeader(http.StatusCreated)
	_, _ = io.Copy(writer, r.Body)
}

// inMemory is a network of one handler.
type inMemory struct{ handler http.Handler }

// RoundTrip serves the request.
func (m inMemory) RoundTrip(r *http.Request) (response *http.Response, err error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	defer func() {
		if aborted := recover(); aborted == http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
			err = io.ErrUnexpectedEOF
		} else if aborted != nil {
			panic(aborted)
		}
	}()
	served := r.Clone(r.Context())
	served.RemoteAddr, served.RequestURI, served.Host = "127.0.0.1:1", r.URL.RequestURI(), r.URL.Host
	if served.Body == nil {
		served.Body = http.NoBody
	}
	recorder := httptest.NewRecorder()
	m.handler.ServeHTTP(recorder, served)
	response = recorder.Result()
	response.Request = r
	return response, nil
}
