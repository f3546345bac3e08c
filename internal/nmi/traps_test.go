package nmi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
)

// trap is a world for one of the defects of AAD Pod Identity v1.8.17, which must
// not come back: a namespace, an agent in each mode, and what is behind them.
type trap struct {
	*testing.T
	c                 *cluster
	ns                string
	imds              *azuresim.Simulator
	upstream          netip.AddrPort
	clouds            *clouds
	standard, managed *running
	net               int
}

// TestTraps names the rows of the list of those defects that the agent's request
// path could repeat, by their numbers. The others are about the redirect (6, 19)
// and about the API and the controller (20, 21, 25).
func TestTraps(t *testing.T) {
	c := newCluster(t)
	service, upstream := azure(t)
	w := newClouds(t)
	standard := c.startIn(w, upstream)
	managed := c.startIn(w, upstream, "--operation-mode=managed")
	for i, row := range []struct {
		name string
		test func(*trap)
	}{
		{"1 pprof on the probe port", trapPprof},
		{"2 any ReplicaSet starting mic is excepted", trapMICByName},
		{"3 managed: an empty selector matches all unlabelled pods", trapEmptySelector},
		{"4 type 0 with empty clientID gets the node's default identity", trapNoClientID},
		{"5 X-Forwarded-For not rejected on the token route", trapForwarded},
		{"7 object_id ignored, excepted pods lose mi_res_id and object_id", trapObjectID},
		{"8 namespaced filter panics", trapNamespacedFilter},
		{"9 case-sensitive final ID match", trapCase},
		{"10 an unmatched request holds the connection 80 s", trapHeld},
		{"11 503 for permanent errors", trapPermanent},
		{"12 errors are text", trapText},
		{"13 client_id and ext_expires_in missing", trapFields},
		{"14 metadata address and custom user agent ignored", trapIgnoredFlags},
		{"15 IPv6 callers are a mistake", trapIPv6},
		{"16 no token cache, a live Secret for each request", trapNoCache},
		{"17 raw path and resource as metric labels", trapLabels},
		{"18 healthz never turns unhealthy, no readiness", trapHealth},
		{"22 a random key of a Secret", trapRandomKey},
		{"23 instance metadata unblocked by casing", trapInstanceCasing},
		{"24 Secrets of other namespaces", trapForeignSecret},
	} {
		t.Run(row.name, func(t *testing.T) {
			ns := c.in(t).namespace(fmt.Sprint("trap-", i))
			standard.t, managed.t = t, t
			row.test(&trap{T: t, c: c.in(t), ns: ns, imds: service, upstream: upstream, clouds: w, standard: standard, managed: managed, net: i})
		})
	}
	standard.t, managed.t = t, t
}

// at returns an address of the trap's own.
func (p *trap) at(n int) string { return fmt.Sprintf("127.4.%d.%d", p.net, n) }

// want checks the status and the words of an answer.
func (p *trap) want(got reaction, status int, words string) {
	p.Helper()
	if got.status != status || !strings.Contains(got.body, words) {
		p.Errorf("got %d %s, want %d with %q", got.status, got.body, status, words)
	}
}

func trapPprof(p *trap) {
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/vars"} {
		p.want(probe(p, p.managed.probes, path), 404, "")
		p.want(probe(p, p.managed.metrics, path), 404, "")
	}
}

func trapMICByName(p *trap) {
	controller := true
	p.c.podWith(metav1.ObjectMeta{Namespace: "default", Name: "microservice-1",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "microservice-5d", UID: "u", Controller: &controller}}}, p.at(1))
	before := len(p.imds.Journal.Since(0))
	p.want(p.managed.get(p.at(1), tokenPath+"?api-version=2018-02-01&resource="+resource+"&client_id="+clientID(1)), 400, "NotSelected")
	if n := len(p.imds.Journal.Since(0)) - before; n > 0 {
		p.Errorf("%d requests reached the service", n)
	}
}

// The API refuses such a binding today, and has let it in before.
func trapEmptySelector(p *trap) {
	if err := p.c.client.Create(p.Context(), azureBinding(p.ns, 1, "")); err == nil || !strings.Contains(err.Error(), "selector is required") {
		p.Errorf("the API server: %v", err)
	}
	s := newScene(p.T, 0)
	s.identities, s.bindings = []*v1.AzureIdentity{azureIdentity("ns", 1)}, []*v1.AzureIdentityBinding{azureBinding("ns", 1, "")}
	for _, labels := range []map[string]string{nil, {"other": "x"}, {v1.PodLabel: ""}} {
		err := s.agent.callers.Set(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: "u", Labels: labels},
			Spec:       corev1.PodSpec{NodeName: nodeName}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: flowPod},
		})
		if err != nil {
			p.Fatal(err)
		}
		if got, reason := s.ask(p.T, imds.TokenRequest{Resource: "r"}); reason != v1.ReasonNotSelected {
			p.Errorf("labels %v: got %q, %s", labels, got, reason)
		}
	}
}

func trapNoClientID(p *trap) {
	id := azureIdentity(p.ns, 1)
	assigned := assignment(p.c.pod(p.ns, "pod", p.ns, p.at(1)), id, v1.AssignedIDAssigned)
	assigned.Spec.AzureIdentityRef.Spec.ClientID, assigned.Spec.AzureIdentityRef.Spec.ResourceID = "", ""
	p.c.apply(assigned)
	before := len(p.imds.Journal.Since(0))
	p.want(p.standard.get(p.at(1), tokenPath+"?resource="+resource), 403, "InvalidIdentity")
	if n := len(p.imds.Journal.Since(0)) - before; n > 0 {
		p.Errorf("%d requests reached the service", n)
	}
}

func trapForwarded(p *trap) {
	p.c.apply(azureIdentity(p.ns, 1), azureBinding(p.ns, 1, p.ns))
	p.c.pod(p.ns, "pod", p.ns, p.at(1))
	request := p.request("http://agent.invalid" + tokenPath + "?resource=" + resource)
	p.want(do(p, p.managed.as(p.at(1)), request), 200, clientID(1))
	request.Header.Set("X-Forwarded-For", "10.0.0.1")
	p.want(do(p, p.managed.as(p.at(1)), request), 400, "X-Forwarded-For")
}

func (p *trap) request(url string) *http.Request {
	p.Helper()
	out, err := http.NewRequestWithContext(p.Context(), http.MethodGet, url, nil)
	if err != nil {
		p.Fatal(err)
	}
	out.Header.Set("Metadata", "true")
	return out
}

func trapObjectID(p *trap) {
	p.c.apply(azureIdentity(p.ns, 1), azureIdentity(p.ns, 2), azureBinding(p.ns, 1, p.ns), azureBinding(p.ns, 2, p.ns),
		&v1.AzurePodIdentityException{ObjectMeta: metav1.ObjectMeta{Namespace: p.ns, Name: "e"}, Spec: v1.AzurePodIdentityExceptionSpec{PodLabels: map[string]string{"except": "me"}}})
	p.c.pod(p.ns, "pod", p.ns, p.at(1))
	p.c.exceptedPod(p.ns, p.at(2))
	r := start(p, p.c.config, p.upstream, "--operation-mode=managed").ready()
	p.want(r.get(p.at(1), tokenPath+"?resource="+resource+"&object_id="+objectID(2)), 200, clientID(2))
	for n, query := range []string{"&mi_res_id=" + armID("id-3"), "&msi_res_id=" + armID("id-3"), "&object_id=" + objectID(3)} {
		got := r.get(p.at(2), tokenPath+"?api-version=2018-02-01&resource="+resource+query)
		p.want(got, 200, clientID(3))
		if p.Failed() {
			p.Fatalf("query %d: %s", n, query)
		}
	}
}

func trapNamespacedFilter(p *trap) {
	far := p.c.namespace(p.ns + "-far")
	id := azureIdentity(far, 1)
	id.Annotations = map[string]string{v1.BehaviorAnnotation: v1.BehaviorNamespaced}
	p.c.apply(assignment(p.c.pod(p.ns, "pod", p.ns, p.at(1)), id, v1.AssignedIDAssigned))
	p.want(p.standard.get(p.at(1), tokenPath+"?resource="+resource), 403, "NamespaceMismatch")
}

func trapCase(p *trap) {
	id := azureIdentity(p.ns, 1)
	p.c.apply(id, azureBinding(p.ns, 1, p.ns), assignment(p.c.pod(p.ns, "pod", p.ns, p.at(1)), id, v1.AssignedIDAssigned))
	for _, query := range []string{"client_id=" + strings.ToUpper(clientID(1)), "mi_res_id=" + strings.ToLower(armID("id-1")), "msi_res_id=" + strings.ToUpper(armID("id-1")), "object_id=" + strings.ToUpper(objectID(1))} {
		p.want(p.standard.get(p.at(1), tokenPath+"?resource="+resource+"&"+query), 200, clientID(1))
	}
}

func trapHeld(p *trap) {
	p.c.pod(p.ns, "pod", "nothing", p.at(1))
	begin := time.Now()
	p.want(p.standard.get(p.at(1), tokenPath+"?resource="+resource), 404, "NoBinding")
	if took := time.Since(begin); took > 20*time.Second {
		p.Errorf("held for %s", took)
	}
}

func trapPermanent(p *trap) {
	for i, row := range []struct {
		name   string
		change func(*v1.AzureIdentity)
		data   []string
		status int
		words  string
	}{
		{"missing", nil, nil, 404, "SecretNotFound"},
		{"empty", nil, []string{"clientSecret", ""}, 403, "InvalidSecret"},
		{"pfx", func(i *v1.AzureIdentity) { i.Spec.Type = 2 }, []string{"certificate", "x"}, 403, "InvalidSecret"},
		{"rejected", nil, []string{"clientSecret", "wrong"}, 400, "AADSTS7000215"},
		{"tenants", func(i *v1.AzureIdentity) { i.Spec.AuxiliaryTenantIDs = []string{otherTenant} }, []string{"clientSecret", "wrong"}, 400, "AADSTS7000215"},
	} {
		id := servicePrincipal(p.ns, row.name, v1.ServicePrincipal)
		if row.change != nil {
			row.change(id)
		}
		p.c.apply(id, bindingFor(id, row.name))
		if row.data != nil {
			p.c.apply(secretFor(p.ns, row.name, row.data...))
		}
		p.c.pod(p.ns, row.name, row.name, p.at(i+1))
		p.want(p.managed.get(p.at(i+1), tokenPath+"?resource="+resource), row.status, row.words)
	}
}

func trapText(p *trap) {
	p.c.pod(p.ns, "pod", "", p.at(1))
	for _, target := range []string{"/", "/doesnotexist", tokenPath, tokenPath + "?resource=r", "/metadata/identity/info", `/metadata/identity%5Coauth2/token`, "/host/token", "/metadata/Instance"} {
		got := p.managed.get(p.at(1), target)
		var body map[string]string
		if err := json.Unmarshal([]byte(got.body), &body); err != nil || body["error"] == "" || body["error_description"] == "" {
			p.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
}

func trapFields(p *trap) {
	p.c.apply(azureIdentity(p.ns, 1), azureBinding(p.ns, 1, p.ns))
	p.c.pod(p.ns, "pod", p.ns, p.at(1))
	var body map[string]string
	got := p.managed.get(p.at(1), tokenPath+"?resource="+resource)
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || body["client_id"] != clientID(1) || body["ext_expires_in"] == "" {
		p.Errorf("got %s", got.body)
	}
}

// agents collects the User-Agents of what passes.
type agents struct {
	next http.RoundTripper
	mu   sync.Mutex // protects seen
	seen []string
}

func (a *agents) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.seen = append(a.seen, r.UserAgent())
	a.mu.Unlock()
	return a.next.RoundTrip(r)
}

func trapIgnoredFlags(p *trap) {
	id := servicePrincipal(p.ns, "app", v1.ServicePrincipal)
	p.c.apply(azureIdentity(p.ns, 1), azureBinding(p.ns, 1, p.ns), id, bindingFor(id, "principal"), secretFor(p.ns, "app", "clientSecret", appSecret))
	p.c.pod(p.ns, "pod", p.ns, p.at(1))
	p.c.pod(p.ns, "principal", "principal", p.at(2))
	toIMDS := ""
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		toIMDS = r.UserAgent()
		_, _ = io.WriteString(w, `{"access_token":"a.b.c","expires_on":"4000000000","token_type":"Bearer"}`) // a client that left shows elsewhere
	}))
	defer service.Close()
	address := netip.MustParseAddrPort(strings.TrimPrefix(service.URL, "http://"))
	toEntra := &agents{next: p.clouds.transport}
	r := startWith(p, func(o *Options) { o.rest, o.entra = p.c.config, toEntra }, "--operation-mode=managed",
		"--metadata-ip="+address.Addr().String(), fmt.Sprint("--metadata-port=", address.Port()), "--custom-user-agent=mine/7").ready()
	p.want(r.get(p.at(1), tokenPath+"?resource="+resource), 200, "a.b.c")
	p.want(r.get(p.at(2), tokenPath+"?resource="+resource), 200, appID)
	for _, agent := range append(toEntra.seen, toIMDS) {
		if !strings.HasPrefix(agent, "aad-pod-identity/NMI/") || !strings.Contains(agent, " mine/7") {
			p.Errorf("User-Agent %q", agent)
		}
	}
}

func trapIPv6(p *trap) {
	s := newScene(p.T, 0)
	s.bind(1)
	err := s.agent.callers.Set(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: "u", Labels: map[string]string{v1.PodLabel: "app"}},
		Spec:       corev1.PodSpec{NodeName: nodeName},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.7", PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}, {IP: "fd00::7"}}},
	})
	if err != nil {
		p.Fatal(err)
	}
	handler := server.New(server.Options{Agent: s.agent})
	for _, remote := range []string{"10.0.0.7:1", "[fd00::7]:1", "[::ffff:10.0.0.7]:1"} {
		request := httptest.NewRequestWithContext(p.Context(), http.MethodGet, tokenPath+"?resource=r", nil)
		request.RemoteAddr = remote
		request.Header.Set("Metadata", "true")
		out := httptest.NewRecorder()
		handler.ServeHTTP(out, request)
		if out.Code != http.StatusOK {
			p.Errorf("%s: %d %s", remote, out.Code, out.Body.String())
		}
	}
}

func trapNoCache(p *trap) {
	id := servicePrincipal(p.ns, "app", v1.ServicePrincipal)
	p.c.apply(azureIdentity(p.ns, 1), azureBinding(p.ns, 1, p.ns), id, bindingFor(id, "principal"), secretFor(p.ns, "app", "clientSecret", appSecret))
	p.c.pod(p.ns, "pod", p.ns, p.at(1))
	p.c.pod(p.ns, "principal", "principal", p.at(2))
	const other = "?resource=https://cached.example"
	toIMDS, toEntra := len(p.imds.Journal.Since(0)), tokens(p.clouds.home)
	for range 10 {
		p.want(p.managed.get(p.at(1), tokenPath+other), 200, clientID(1))
		p.want(p.managed.get(p.at(2), tokenPath+other), 200, appID)
		// Within its time, even a Secret that is gone is not read again.
		if err := p.c.client.Delete(p.Context(), secretFor(p.ns, "app")); err != nil && !strings.Contains(err.Error(), "not found") {
			p.Fatal(err)
		}
	}
	if a, b := len(p.imds.Journal.Since(0))-toIMDS, tokens(p.clouds.home)-toEntra; a != 1 || b != 1 {
		p.Errorf("%d requests to IMDS, %d to Entra", a, b)
	}
}

func trapLabels(p *trap) {
	p.c.pod(p.ns, "pod", "", p.at(1))
	for n := range 20 {
		p.managed.get(p.at(1), tokenPath+fmt.Sprintf("/?resource=invented-%d-%s", n, strings.Repeat("x", 300)))
		p.managed.get(p.at(1), fmt.Sprint("/metadata/invented-", n))
	}
	if metrics := probe(p, p.managed.metrics, "/metrics").body; strings.Contains(metrics, "invented") || strings.Contains(metrics, tokenPath+"/") {
		p.Error("a caller chose the value of a label")
	}
}

func trapHealth(p *trap) {
	broken := fmt.Errorf("the chain is gone")
	p.managed.redirect.broken.Store(&broken)
	defer p.managed.redirect.broken.Store(nil)
	p.want(probe(p, p.managed.probes, "/healthz"), 503, "the chain is gone")
	p.want(probe(p, p.managed.probes, "/readyz"), 503, "the chain is gone")
	p.managed.redirect.broken.Store(nil)
	p.want(probe(p, p.managed.probes, "/healthz"), 200, "Active")
}

func trapRandomKey(p *trap) {
	id := servicePrincipal(p.ns, "app", v1.ServicePrincipal)
	two := servicePrincipal(p.ns, "two", v1.ServicePrincipal)
	p.c.apply(id, bindingFor(id, "app"), secretFor(p.ns, "app", "a", "x", "clientSecret", appSecret, "z", "y"),
		two, bindingFor(two, "two"), secretFor(p.ns, "two", "a", "x", "b", appSecret))
	p.c.pod(p.ns, "app", "app", p.at(1))
	p.c.pod(p.ns, "two", "two", p.at(2))
	p.want(p.managed.get(p.at(1), tokenPath+"?resource="+resource), 200, appID)
	p.want(p.managed.get(p.at(2), tokenPath+"?resource="+resource), 403, "of which none can be chosen")
}

func trapInstanceCasing(p *trap) {
	p.c.pod(p.ns, "pod", "", p.at(1))
	r := start(p, p.c.config, p.upstream, "--block-instance-metadata").ready()
	before := len(p.imds.Journal.Since(0))
	for _, target := range []string{"/metadata/instance", "/metadata/Instance", "/Metadata/INSTANCE/compute", "/metadata/instance/", "/metadata/%69nstance", "/metadata//instance"} {
		if got := r.get(p.at(1), target); got.status != 403 && got.status != 400 {
			p.Errorf("%s: %d", target, got.status)
		}
	}
	if n := len(p.imds.Journal.Since(0)) - before; n > 0 {
		p.Errorf("%d requests reached the service", n)
	}
}

func trapForeignSecret(p *trap) {
	far := p.c.namespace(p.ns + "-far")
	id := servicePrincipal(p.ns, "app", v1.ServicePrincipal)
	id.Spec.ClientPassword.Namespace = far
	p.c.apply(id, bindingFor(id, p.ns), secretFor(far, "app", "clientSecret", appSecret))
	p.c.pod(p.ns, "pod", p.ns, p.at(1))
	before := tokens(p.clouds.home)
	p.want(p.managed.get(p.at(1), tokenPath+"?resource="+resource), 403, "SecretForbidden")
	if n := tokens(p.clouds.home) - before; n > 0 {
		p.Errorf("Entra gave %d tokens", n)
	}
}
