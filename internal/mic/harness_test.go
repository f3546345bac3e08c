package mic_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

const (
	subscription = "/subscriptions/11111111-2222-3333-4444-555555555555"
	tenant       = "0a0a0a0a-0000-4000-8000-00000000000a"
	micClientID  = "aaaaaaaa-0000-4000-8000-000000000001"
	micObjectID  = "aaaaaaaa-0000-4000-8000-000000000002"
	micSecret    = "correct horse battery staple"
	micNamespace = "mic-system"
	micUser      = "system:serviceaccount:mic-system:mic"
	// patience is how long a test waits for what must come.
	patience = 40 * time.Second
)

// world is an API server and a simulated Azure.
type world struct {
	config *rest.Config
	kube   client.WithWatch
	sim    *azuresim.Simulator
	https  string // the simulator's address
	azure  string // azure.json
}

func newWorld(t *testing.T, config azuresim.Config) *world {
	t.Helper()
	config.State = model.Document{
		Tenant:       tenant,
		Applications: []model.Application{{Name: "mic", ClientID: micClientID, PrincipalID: micObjectID, Secrets: []model.Secret{micSecret}}},
		RoleAssignments: []model.RoleAssignment{
			{Principal: micObjectID, Role: "Virtual Machine Contributor", Scope: subscription},
			{Principal: micObjectID, Role: "Managed Identity Operator", Scope: subscription},
		},
	}
	sim, err := azuresim.New(config)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{config: env.Start(t), sim: sim, azure: filepath.Join(t.TempDir(), "azure.json")}
	if w.kube, err = client.NewWithWatch(w.config, client.Options{Scheme: env.Scheme()}); err != nil {
		t.Fatal(err)
	}
	w.serve(t)
	azure := fmt.Sprintf(`{"cloud":"AzurePublicCloud","tenantId":%q,"aadClientId":%q,"aadClientSecret":%q,"useManagedIdentityExtension":false}`, tenant, micClientID, micSecret)
	if err := os.WriteFile(w.azure, []byte(azure), 0o600); err != nil {
		t.Fatal(err)
	}
	w.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: micNamespace}})
	w.authorize(t)
	return w
}

// serve runs the simulator on loopback. Its journal must hold nothing that Azure
// does not offer.
func (w *world) serve(t *testing.T) {
	t.Helper()
	listeners := azuresim.Listeners{HTTPS: listen(t), IMDS: listen(t), Control: listen(t)}
	w.https = listeners.HTTPS.Addr().String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- w.sim.Run(ctx, listeners) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("running the simulator: %v", err)
		}
		for _, e := range w.sim.Journal.Unexpected() {
			t.Errorf("unexpected: %s", e)
		}
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// transport carries requests to the simulator, whatever their host is.
func (w *world) transport(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.sim.Pool(), MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if _, port, err := net.SplitHostPort(address); err != nil || port != "443" {
				return nil, fmt.Errorf("a test may not dial %s", address)
			}
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, w.https)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// options are those of a controller in this world.
func (w *world) options(t *testing.T, args ...string) mic.Options {
	t.Helper()
	args = append([]string{
		"--cloudconfig", w.azure, "--http-probe-port=0", "--prometheus-port=0", "--leader-election-duration=60s",
		"--gather-window=300ms", "--retry-min=200ms", "--retry-max=2s", "--quarantine-min=200ms", "--quarantine-max=2s",
		// ARM's limits have tests of their own; here they would only cost time.
		"--arm-update-limit-per-resource=6000/60000", "--arm-read-limit-per-resource=6000/60000", "--arm-limit-refill=1s",
	}, args...)
	options, err := mic.ParseOptions(args, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	options.Version, options.Kube, options.Transport = "test", rest.CopyConfig(w.config), w.transport(t)
	options.Kube.Impersonate = rest.ImpersonationConfig{UserName: micUser}
	options.Getenv = func(name string) string { return map[string]string{"MIC_POD_NAMESPACE": micNamespace}[name] }
	if testing.Verbose() {
		if options.Logger, err = obs.NewLogger(t.Output(), obs.LogOptions{}); err != nil {
			t.Fatal(err)
		}
	} else {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return options
}

// run runs a controller until stop is called, at the latest at the test's end.
func run(t *testing.T, options mic.Options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- mic.Run(ctx, options) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("running the controller: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (w *world) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
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

// await lists, and lists again after each event, until ok says true.
func await[L client.ObjectList](t *testing.T, w *world, list L, what string, ok func(L) bool) L {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		if err := w.kube.List(ctx, list); err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if ok(list) {
			return list
		}
		watcher, err := w.kube.Watch(ctx, list, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.GetResourceVersion()}})
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		select {
		case <-watcher.ResultChan():
			watcher.Stop()
		case <-ctx.Done():
			watcher.Stop()
			t.Fatalf("waited %s in vain for %s; there is:\n%s", patience, what, describe(list))
		}
	}
}

func describe(list client.ObjectList) string {
	var out strings.Builder
	switch l := list.(type) {
	case *v1.AzureAssignedIdentityList:
		for _, a := range l.Items {
			fmt.Fprintf(&out, "%s/%s on %s: %s %v\n", a.Namespace, a.Name, a.Spec.NodeName, a.Status.Status, a.Status.Conditions)
		}
	case *corev1.EventList:
		for _, e := range l.Items {
			fmt.Fprintf(&out, "%s %s/%s %s: %s\n", e.Type, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	case *v1.AzureIdentityAttachmentList:
		for _, a := range l.Items {
			fmt.Fprintf(&out, "%s: owned %v, present %v, %v\n", a.Name, a.Spec.Owned, a.Status.Present, a.Status.Conditions)
		}
	}
	return out.String()
}

// scene is a namespace with a scale set or virtual machine of its own, so that
// scenes share a world without meeting.
type scene struct {
	*world
	ns, resource string
}

const (
	scaleSets       = "/providers/Microsoft.Compute/virtualMachineScaleSets/"
	virtualMachines = "/providers/Microsoft.Compute/virtualMachines/"
)

// scene makes a scene whose first node is an instance of a scale set, or of
// which it is a virtual machine of its own: kind says.
func (w *world) scene(t *testing.T, name, kind string) *scene {
	t.Helper()
	w.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	s := &scene{world: w, ns: name}
	return s.beside(t, name+"-node-0", subscription+"/resourceGroups/MC_"+name+kind+"pool-"+name)
}

// beside makes another resource and its node for the scene, and returns the
// scene with that resource in place of its own.
func (s *scene) beside(t *testing.T, node, resource string) *scene {
	t.Helper()
	other := &scene{world: s.world, ns: s.ns, resource: resource}
	doc, providerID := model.Document{VirtualMachines: []model.VirtualMachine{{ID: resource}}}, resource
	if !other.isVM() {
		doc, providerID = model.Document{ScaleSets: []model.ScaleSet{{ID: resource}}}, resource+"/virtualMachines/0"
	}
	if _, err := s.sim.State.Add(doc); err != nil {
		t.Fatal(err)
	}
	s.node(t, node, providerID)
	return other
}

func (s *scene) isVM() bool {
	return strings.Contains(strings.ToLower(s.resource), strings.ToLower(virtualMachines))
}

func (s *scene) node(t *testing.T, name, id string) *corev1.Node {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: "azure://" + id}}
	s.create(t, node)
	return node
}

// attach puts an identity on the scene's resource as an operator would.
func (s *scene) attach(t *testing.T, name string) {
	t.Helper()
	attachment := model.Attachment{ScaleSet: s.resource, Identity: s.id(name)}
	if s.isVM() {
		attachment = model.Attachment{VM: s.resource, Identity: s.id(name)}
	}
	if _, err := s.sim.State.Attach(attachment); err != nil {
		t.Fatal(err)
	}
}

// id is the ARM ID of one of the scene's managed identities.
func (s *scene) id(name string) string {
	return subscription + "/resourceGroups/Apps-" + s.ns + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
}

// managed makes a managed identity in Azure.
func (s *scene) managed(t *testing.T, name string) (clientID string) {
	t.Helper()
	added, err := s.sim.State.Add(model.Document{Identities: []model.Identity{{ID: s.id(name)}}})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(added.Identities, func(i model.Identity) bool { return strings.EqualFold(i.ID, s.id(name)) })
	return added.Identities[at].ClientID
}

// identity makes an AzureIdentity, its managed identity, and a binding whose
// selector is its name.
func (s *scene) identity(t *testing.T, name string) (*v1.AzureIdentity, *v1.AzureIdentityBinding) {
	t.Helper()
	object := &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: name},
		Spec:       v1.AzureIdentitySpec{ResourceID: s.id(name), ClientID: s.managed(t, name)},
	}
	s.create(t, object)
	return object, s.bind(t, name, name)
}

func (s *scene) bind(t *testing.T, identity, selector string) *v1.AzureIdentityBinding {
	t.Helper()
	object := &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: identity + "-" + selector},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: identity, Selector: s.label(selector)},
	}
	s.create(t, object)
	return object
}

// label keeps the scenes' selectors apart: a binding selects pods of the whole
// cluster.
func (s *scene) label(selector string) string { return s.ns + "." + selector }

// pod makes a pod of the scene's namespace on its first node.
func (s *scene) pod(t *testing.T, name, selector string) *corev1.Pod {
	t.Helper()
	return s.podOn(t, s.ns, name, selector, s.ns+"-node-0")
}

func (s *scene) podOn(t *testing.T, namespace, name, selector, node string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1.PodLabel: s.label(selector)}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	s.create(t, pod)
	return pod
}

// kill removes a pod as the kubelet does at its end.
func (s *scene) kill(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	s.delete(t, pod, client.GracePeriodSeconds(0))
}

// assignment waits until an assignment of the pod is as ok says.
func (s *scene) assignment(t *testing.T, pod *corev1.Pod, what string, ok func(v1.AzureAssignedIdentity) bool) v1.AzureAssignedIdentity {
	t.Helper()
	var found v1.AzureAssignedIdentity
	await(t, s.world, &v1.AzureAssignedIdentityList{}, "an assignment of "+pod.Name+" "+what, func(l *v1.AzureAssignedIdentityList) bool {
		for _, a := range l.Items {
			if a.Spec.Pod == pod.Name && a.Spec.PodNamespace == pod.Namespace && ok(a) {
				found = a
				return true
			}
		}
		return false
	})
	return found
}

func (s *scene) assigned(t *testing.T, pod *corev1.Pod) v1.AzureAssignedIdentity {
	t.Helper()
	return s.assignment(t, pod, "that is Assigned", isAssigned)
}

func isAssigned(a v1.AzureAssignedIdentity) bool { return a.Status.Status == v1.AssignedIDAssigned }

// waiting waits until the pod's assignment says a reason why it is not there.
func (s *scene) waiting(t *testing.T, pod *corev1.Pod, reason v1.Reason) v1.AzureAssignedIdentity {
	t.Helper()
	return s.assignment(t, pod, "that is Created with "+string(reason), func(a v1.AzureAssignedIdentity) bool {
		return a.Status.Status == v1.AssignedIDCreated && reasonOf(a.Status.Conditions, v1.ConditionReady) == reason
	})
}

func reasonOf(conditions []metav1.Condition, kind string) v1.Reason {
	for _, c := range conditions {
		if c.Type == kind {
			return v1.Reason(c.Reason)
		}
	}
	return ""
}

// unassigned waits until the pod has no assignment.
func (s *scene) unassigned(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	await(t, s.world, &v1.AzureAssignedIdentityList{}, "no assignment of "+pod.Name, func(l *v1.AzureAssignedIdentityList) bool {
		return !slices.ContainsFunc(l.Items, func(a v1.AzureAssignedIdentity) bool {
			return a.Spec.Pod == pod.Name && a.Spec.PodNamespace == pod.Namespace
		})
	})
}

// record waits until the resource's record is as ok says.
func (s *scene) record(t *testing.T, what string, ok func(v1.AzureIdentityAttachment) bool) v1.AzureIdentityAttachment {
	t.Helper()
	var found v1.AzureIdentityAttachment
	await(t, s.world, &v1.AzureIdentityAttachmentList{}, "the record of "+s.resource+" "+what, func(l *v1.AzureIdentityAttachmentList) bool {
		for _, a := range l.Items {
			if strings.EqualFold(a.Spec.ResourceID, s.resource) && ok(a) {
				found = a
				return true
			}
		}
		return false
	})
	return found
}

func synced(a v1.AzureIdentityAttachment) bool {
	return reasonOf(a.Status.Conditions, v1.ConditionSynced) == v1.ReasonSynced
}

// present waits until the record says that exactly these are present.
func (s *scene) present(t *testing.T, names ...string) {
	t.Helper()
	var want []string
	for _, name := range names {
		want = append(want, strings.ToLower(s.id(name)))
	}
	slices.Sort(want)
	s.record(t, fmt.Sprintf("with %v present", names), func(a v1.AzureIdentityAttachment) bool {
		return synced(a) && slices.Equal(a.Status.Present, want)
	})
	azure := s.sim.State.Snapshot()
	for _, resource := range append(azure.ScaleSets, azure.VirtualMachines...) {
		if strings.EqualFold(resource.ID, s.resource) {
			for i, id := range resource.UserAssigned {
				resource.UserAssigned[i] = strings.ToLower(id)
			}
			slices.Sort(resource.UserAssigned)
			if !slices.Equal(resource.UserAssigned, want) {
				t.Errorf("Azure has %v, want %v", resource.UserAssigned, want)
			}
		}
	}
}

// requests are what ARM was asked for the scene's resource.
func (s *scene) requests(method string) []journal.Entry {
	return slices.DeleteFunc(s.sim.Journal.Since(0), func(e journal.Entry) bool { return !s.ours(e, method) })
}

func (s *scene) ours(e journal.Entry, method string) bool {
	return e.Surface == journal.ARM && e.Method == method && strings.EqualFold(e.Path, s.resource)
}

// fail makes ARM answer the scene's requests with an error.
func (s *scene) fail(t *testing.T, method string, times int, response fault.Response) fault.Fault {
	t.Helper()
	added, err := s.sim.Faults.Add(fault.Fault{Match: fault.Match{Surface: journal.ARM, Method: method, Path: s.resource}, Times: times, Response: response})
	if err != nil {
		t.Fatal(err)
	}
	return added
}

// event waits for an Event on an object.
func (s *scene) event(t *testing.T, kind, name, reason, words string) {
	t.Helper()
	await(t, s.world, &corev1.EventList{}, fmt.Sprintf("an event %s on %s %s that says %q", reason, kind, name, words), func(l *corev1.EventList) bool {
		return slices.ContainsFunc(l.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason &&
				e.Source.Component == "aadpodidentity.k8s.io" && strings.Contains(e.Message, words)
		})
	})
}

// gate is a transport that a test can close for one kind of request.
type gate struct {
	policy.Transporter
	// before and after see each request before it is sent and when it was
	// answered; an error takes the answer's place.
	before, after func(*http.Request) error
}

func (g *gate) Do(r *http.Request) (*http.Response, error) {
	if g.before != nil {
		if err := g.before(r); err != nil {
			return nil, err
		}
	}
	response, err := g.Transporter.Do(r)
	if err == nil && g.after != nil {
		if failure := g.after(r); failure != nil {
			return nil, failure
		}
	}
	return response, err
}
