package nmi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

const (
	nodeName  = "node-a"
	resource  = "https://vault.azure.net"
	group     = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/Apps"
	scaleSet  = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/nodes/providers/Microsoft.Compute/virtualMachineScaleSets/pool"
	tokenPath = "/metadata/identity/oauth2/token"
)

func armID(name string) string {
	return group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
}

// clientID and objectID are GUIDs that end in a number of the identity's own.
func clientID(n int) string { return fmt.Sprintf("bbbbbbbb-0000-4000-8000-%012d", n) }
func objectID(n int) string { return fmt.Sprintf("cccccccc-0000-4000-8000-%012d", n) }

// azure is a simulated Azure with the identities id-1 to id-4 on the node.
func azure(t testing.TB) (*azuresim.Simulator, netip.AddrPort) {
	t.Helper()
	set := model.ScaleSet{ID: scaleSet}
	var identities []model.Identity
	for n := range 4 {
		id := model.Identity{ID: armID(fmt.Sprint("id-", n+1)), ClientID: clientID(n + 1), PrincipalID: objectID(n + 1)}
		identities, set.UserAssigned = append(identities, id), append(set.UserAssigned, id.ID)
	}
	sim, err := azuresim.New(azuresim.Config{State: model.Document{
		Identities: identities, ScaleSets: []model.ScaleSet{set},
		Nodes: []model.Node{{Name: nodeName, ScaleSet: scaleSet, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(sim.IMDS())
	t.Cleanup(server.Close)
	return sim, netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://"))
}

// cluster is a real API server.
type cluster struct {
	t      testing.TB
	config *rest.Config
	client client.Client
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	config := env.Start(t)
	c, err := client.New(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, config: config, client: c}
}

// in returns the same cluster for a subtest.
func (c *cluster) in(t testing.TB) *cluster {
	return &cluster{t: t, config: c.config, client: c.client}
}

func (c *cluster) apply(objects ...client.Object) {
	c.t.Helper()
	for _, object := range objects {
		if err := c.client.Create(c.t.Context(), object); err != nil {
			c.t.Fatalf("creating %s %s: %v", object.GetNamespace(), object.GetName(), err)
		}
	}
}

func (c *cluster) namespace(name string) string {
	c.t.Helper()
	c.apply(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	return name
}

// pod makes a running pod of the node, with an address of loopback. Without an
// address it is pending.
func (c *cluster) pod(namespace, name, label, address string) *corev1.Pod {
	c.t.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	if label != "" {
		meta.Labels = map[string]string{v1.PodLabel: label}
	}
	return c.podWith(meta, address)
}

func (c *cluster) podWith(meta metav1.ObjectMeta, address string) *corev1.Pod {
	c.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: meta,
		Spec:       corev1.PodSpec{NodeName: nodeName, ServiceAccountName: "app", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	c.apply(pod)
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
	if address != "" {
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}}
	}
	if err := c.client.Status().Update(c.t.Context(), pod); err != nil {
		c.t.Fatal(err)
	}
	return pod
}

// events watches a namespace's Events; what it returns waits for the next one.
func (c *cluster) events(namespace string) func() *corev1.Event {
	c.t.Helper()
	watcher, err := client.NewWithWatch(c.config, client.Options{Scheme: c.client.Scheme()})
	if err != nil {
		c.t.Fatal(err)
	}
	events, err := watcher.Watch(c.t.Context(), &corev1.EventList{}, client.InNamespace(namespace))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(events.Stop)
	return func() *corev1.Event {
		event, ok := (<-events.ResultChan()).Object.(*corev1.Event)
		if !ok {
			c.t.Fatal("the watch of events broke")
		}
		return event
	}
}

func azureIdentity(namespace string, n int) *v1.AzureIdentity {
	name := fmt.Sprint("id-", n)
	return &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1.AzureIdentitySpec{ClientID: clientID(n), ResourceID: armID(name)},
	}
}

func azureBinding(namespace string, n int, selector string) *v1.AzureIdentityBinding {
	return &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("binding-", n)},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: fmt.Sprint("id-", n), Selector: selector},
	}
}

func assignment(pod *corev1.Pod, id *v1.AzureIdentity, state string) *v1.AzureAssignedIdentity {
	copied := id.DeepCopy()
	copied.TypeMeta = metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureIdentity"}
	copied.ResourceVersion, copied.UID, copied.ManagedFields = "", "", nil
	return &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: pod.Name + "-" + pod.Namespace + "-" + id.Name, Labels: map[string]string{v1.NodeNameLabel: nodeName}},
		Spec:       v1.AzureAssignedIdentitySpec{AzureIdentityRef: copied, Pod: pod.Name, PodNamespace: pod.Namespace, NodeName: nodeName},
		Status:     v1.AzureAssignedIdentityStatus{Status: state},
	}
}

// fakeRedirect stands in for the kernel, which a test must leave alone.
type fakeRedirect struct {
	keep    func(ctx context.Context, hooks redirectHooks) error
	prepare func() (string, error) // nil for nothing to make
	broken  atomic.Pointer[error]
	refused atomic.Bool
	deleted atomic.Bool
	stuck   atomic.Pointer[error] // why nothing can be deleted
	tables  []string              // what is on the node before the agent is
	surveys chan survey           // what it finds, one after the other; nil for nothing
	leads   atomic.Pointer[error] // how a packet of the agent's own fares
}

func (f *fakeRedirect) Survey() (survey, error) {
	select {
	case found := <-f.surveys:
		return found, nil
	default:
		return survey{}, nil
	}
}

func (f *fakeRedirect) Prepare(context.Context) (string, error) {
	if f.prepare == nil {
		return "", nil
	}
	return f.prepare()
}

func (f *fakeRedirect) Refuse() error { f.refused.Store(true); return nil }

func (f *fakeRedirect) Delete(context.Context) (redirect.Removal, error) {
	if err := f.stuck.Load(); err != nil {
		return redirect.Removal{}, *err
	}
	f.deleted.Store(true)
	return redirect.Removal{Tables: []string{"table"}}, nil
}

func (f *fakeRedirect) Tables() ([]string, error) { return f.tables, nil }

// Try implements what tries the redirect.
func (f *fakeRedirect) Try(context.Context) error {
	if err := f.leads.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *fakeRedirect) Close() error { return nil }

func (f *fakeRedirect) Keep(ctx context.Context, hooks redirectHooks) error {
	if f.keep != nil {
		return f.keep(ctx, hooks)
	}
	hooks.ready()
	<-ctx.Done()
	return nil
}

func (f *fakeRedirect) Verify(context.Context) error {
	if err := f.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// lines is a log that tests look at.
type lines struct {
	mu   sync.Mutex // protects text
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running is an agent at work.
type running struct {
	t                    testing.TB
	api, probes, metrics netip.AddrPort
	synced               chan struct{}
	redirect             *fakeRedirect
	log                  *lines
	stop                 func() error
}

// start starts an agent and waits for it to listen. flags are as on a command
// line.
func start(t testing.TB, config *rest.Config, upstream netip.AddrPort, flags ...string) *running {
	t.Helper()
	return startWith(t, func(o *Options) { o.rest, o.Upstream = config, upstream.String() }, flags...)
}

func startWith(t testing.TB, change func(*Options), flags ...string) *running {
	t.Helper()
	r := &running{t: t, synced: make(chan struct{}), redirect: &fakeRedirect{}, log: &lines{}}
	options := testOptions(t, flags...)
	change(options)
	logger, err := obs.NewLogger(r.log, options.Log)
	if err != nil {
		t.Fatal(err)
	}
	options.Logger = logger
	options.newRedirect = func(redirect.Config) (redirector, error) { return r.redirect, nil }
	options.newProber = func() (selfprobe.Trier, error) { return r.redirect, nil }
	options.synced = func() { close(r.synced) }
	open := make(chan struct{})
	options.listening = func(api, probes, metrics netip.AddrPort) {
		r.api, r.probes, r.metrics = api, loopback(probes), loopback(metrics)
		close(open)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, options) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	select {
	case <-open:
	case err := <-done:
		done <- err
		t.Fatalf("the agent did not start: %v", err)
	}
	return r
}

func testOptions(t testing.TB, flags ...string) *Options {
	t.Helper()
	options := NewOptions()
	set := pflag.NewFlagSet("nmi", pflag.ContinueOnError)
	options.AddFlags(set)
	base := []string{"--node=" + nodeName, "--nmi-port=0", "--http-probe-port=0", "--prometheus-port=0"}
	if err := set.Parse(append(base, flags...)); err != nil {
		t.Fatal(err)
	}
	return options
}

func loopback(address netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), address.Port())
}

func (r *running) ready() *running {
	r.t.Helper()
	select {
	case <-r.synced:
	case <-time.After(30 * time.Second):
		r.t.Fatal("the caches were never synced")
	}
	return r
}

// as returns a client that dials the agent from a pod's address, whatever the
// URL says: nothing leaves the loopback.
func (r *running) as(address string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, r.api.String())
	}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

type reaction struct {
	status int
	body   string
}

// get asks as a pod's curl would.
func (r *running) get(address, target string) reaction {
	r.t.Helper()
	return fetch(r.t, r.as(address), "http://agent.invalid"+target)
}

func fetch(t testing.TB, c *http.Client, url string) reaction {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Metadata", "true")
	return do(t, c, request)
}

func do(t testing.TB, c *http.Client, request *http.Request) reaction {
	t.Helper()
	response, err := c.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reaction{response.StatusCode, string(body)}
}

// probe asks a probe or the metrics.
func probe(t testing.TB, address netip.AddrPort, path string) reaction {
	t.Helper()
	return fetch(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+address.String()+path)
}

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func quiet(testing.TB) *slog.Logger { return slog.New(slog.DiscardHandler) }

// slowUpstream says on waiting that a request has come, and answers it when it
// may leave.
func slowUpstream(t testing.TB, waiting, leave chan struct{}) netip.AddrPort {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(waiting)
		<-leave
		_, _ = io.WriteString(w, `{"access_token":"a.b.c","client_id":"`+r.FormValue("client_id")+`","expires_on":"4000000000","token_type":"Bearer"}`)
	}))
	t.Cleanup(server.Close)
	return netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://"))
}
