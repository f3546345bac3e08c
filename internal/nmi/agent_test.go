package nmi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

func TestAgent(t *testing.T) {
	c := newCluster(t)
	for name, test := range map[string]func(*testing.T, *cluster){
		"an SDK gets the identity it asks for":              testSDK,
		"an SDK is refused what is not the pod's":           testSDKRefused,
		"managed mode refuses":                              testManagedRefusals,
		"standard mode answers on the event":                testCreatedToAssigned,
		"standard mode says what it waits for":              testStandardWaits,
		"legacy objects work the same":                      testLegacy,
		"exceptions reach the service with their own words": testException,
		"warnings become events once":                       testEvents,
		"probes and metrics tell the truth":                 testProbes,
		"object IDs choose by the token itself":             testObjectID,
		"the rights that are documented are enough":         testRights,
		"the startup taint goes when the agent is ready":    testUntaint,
		"pods that cannot be told apart are refused":        testKubenet,
		"ready while its own packet comes back":             testProbe,
	} {
		t.Run(name, func(t *testing.T) { test(t, c.in(t)) })
	}
}

// claims decodes a token of the simulator.
func claims(t testing.TB, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(payload, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (r *running) credential(address string, id azidentity.ManagedIDKind) *azidentity.ManagedIdentityCredential {
	r.t.Helper()
	out, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{
		ID:            id,
		ClientOptions: azcore.ClientOptions{Transport: r.as(address), Retry: policy.RetryOptions{MaxRetries: -1}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// scope asks for a token of an audience that no other test asks for: the SDK
// keeps tokens for the whole process, and would answer instead of the agent.
func scope(n int) (string, policy.TokenRequestOptions) {
	audience := fmt.Sprintf("https://account%d.blob.core.windows.net", n)
	return audience, policy.TokenRequestOptions{Scopes: []string{audience + "/.default"}}
}

func testSDK(t *testing.T, c *cluster) {
	ns := c.namespace("sdk")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureIdentity(ns, 2), azureBinding(ns, 1, "app"), azureBinding(ns, 2, "app"))
	c.pod(ns, "pod", "app", "127.0.1.1")
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	for name, test := range map[string]struct {
		id       azidentity.ManagedIDKind
		audience int
		want     int
	}{
		"by client ID":               {azidentity.ClientID(clientID(2)), 1, 2},
		"by client ID, another case": {azidentity.ClientID(strings.ToUpper(clientID(2))), 2, 2},
		"by resource ID":             {azidentity.ResourceID(strings.ToLower(armID("id-2"))), 3, 2},
		"by object ID":               {azidentity.ObjectID(objectID(2)), 4, 2},
		"by none":                    {nil, 5, 1},
	} {
		t.Run(name, func(t *testing.T) {
			audience, options := scope(test.audience)
			token, err := r.credential("127.0.1.1", test.id).GetToken(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			if got := claims(t, token.Token); got["appid"] != clientID(test.want) || got["oid"] != objectID(test.want) || got["aud"] != audience {
				t.Errorf("got a token with %v, want one for id-%d", got, test.want)
			}
		})
	}
}

func testSDKRefused(t *testing.T, c *cluster) {
	ns := c.namespace("sdk-refused")
	sim, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureIdentity(ns, 3), azureBinding(ns, 1, "app"))
	c.pod(ns, "pod", "app", "127.0.2.1")
	c.pod(ns, "bare", "", "127.0.2.2")
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	before := len(sim.Journal.Since(0))
	for name, test := range map[string]struct {
		from string
		id   azidentity.ManagedIDKind
		want string
	}{
		"not bound":           {"127.0.2.1", azidentity.ClientID(clientID(3)), "NotBound"},
		"unknown":             {"127.0.2.1", azidentity.ClientID(clientID(9)), "Identity not found"},
		"another principal":   {"127.0.2.2", azidentity.ClientID(clientID(1)), "Identity not found"},
		"none, no label":      {"127.0.2.2", nil, "NotSelected"},
		"resource, not bound": {"127.0.2.1", azidentity.ResourceID(armID("id-3")), "NotBound"},
	} {
		t.Run(name, func(t *testing.T) {
			_, options := scope(6)
			_, err := r.credential(test.from, test.id).GetToken(t.Context(), options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want words of %q", err, test.want)
			}
		})
	}
	if after := len(sim.Journal.Since(0)); after != before {
		t.Errorf("%d requests reached the service", after-before)
	}
}

func testManagedRefusals(t *testing.T, c *cluster) {
	ns, far := c.namespace("managed"), c.namespace("managed-far")
	sim, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureIdentity(ns, 2), azureBinding(ns, 1, "app"), azureIdentity(far, 3), azureBinding(far, 3, "app"),
		&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "dangling"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "missing", Selector: "dangling"}})
	sp := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "id-7"}, Spec: v1.AzureIdentitySpec{
		Type: v1.ServicePrincipal, ClientID: clientID(7), TenantID: "t", ClientPassword: &v1.SecretReference{Name: "s", Namespace: ns}}}
	c.apply(sp, azureBinding(ns, 7, "principal"))
	for i, label := range []string{"app", "", "nothing", "dangling", "principal"} {
		c.pod(ns, fmt.Sprint("pod-", i), label, fmt.Sprint("127.0.3.", i))
	}
	r := start(t, c.config, upstream, "--operation-mode=managed", "--assignment-wait=100ms").ready()
	before := len(sim.Journal.Since(0))
	for name, test := range map[string]struct {
		from, target string
		status       int
		words        string
	}{
		"not bound":                 {"127.0.3.0", tokenPath + "?resource=r&client_id=" + clientID(2), 403, "NotBound"},
		"not bound, by resource":    {"127.0.3.0", tokenPath + "?resource=r&mi_res_id=" + armID("id-2"), 403, "NotBound"},
		"another namespace's":       {"127.0.3.0", tokenPath + "?resource=r&client_id=" + clientID(3), 403, "NotBound"},
		"unknown":                   {"127.0.3.0", tokenPath + "?resource=r&client_id=" + clientID(9), 400, "Identity not found"},
		"conflicting":               {"127.0.3.0", tokenPath + "?resource=r&client_id=" + clientID(1) + "&mi_res_id=" + armID("id-2"), 400, "different identities"},
		"unknown object ID":         {"127.0.3.0", tokenPath + "?resource=" + resource + "&object_id=" + objectID(2), 400, "UnknownIdentity"},
		"no label":                  {"127.0.3.1", tokenPath + "?resource=r", 400, "carries no label aadpodidbinding"},
		"no binding":                {"127.0.3.2", tokenPath + "?resource=r", 404, "NoBinding"},
		"no binding, one asked for": {"127.0.3.2", tokenPath + "?resource=r&client_id=" + clientID(1), 404, "NoBinding"},
		"no identity":               {"127.0.3.3", tokenPath + "?resource=r", 404, "IdentityNotFound"},
		"a service principal":       {"127.0.3.4", tokenPath + "?resource=r", 404, "SecretNotFound"},
		"nobody's address":          {"127.0.3.99", tokenPath + "?resource=r", 404, "CallerUnknown"},
		"another route of identity": {"127.0.3.0", "/metadata/identity/issuecredential", 404, "NotServed"},
		"other metadata":            {"127.0.3.0", "/metadata/attested/document", 404, "NotServed"},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.get(test.from, test.target)
			if got.status != test.status || !strings.Contains(got.body, test.words) {
				t.Errorf("got %d %s, want %d with %q", got.status, got.body, test.status, test.words)
			}
		})
	}
	for _, entry := range sim.Journal.Since(0)[before:] {
		// To compare object IDs, a token of the pod's own identity is looked at.
		if query := entry.Query; !strings.Contains(query, clientID(1)) {
			t.Errorf("reached the service: %s", query)
		}
	}
}

func testCreatedToAssigned(t *testing.T, c *cluster) {
	ns := c.namespace("standard")
	_, upstream := azure(t)
	id := azureIdentity(ns, 1)
	c.apply(id, azureBinding(ns, 1, "app"))
	pod := c.pod(ns, "pod", "app", "127.0.4.1")
	assigned := assignment(pod, id, v1.AssignedIDCreated)
	c.apply(assigned)
	r := start(t, c.config, upstream, "--assignment-wait=60s").ready()
	answered := make(chan reaction, 1)
	go func() { answered <- r.get("127.0.4.1", tokenPath+"?resource="+resource) }()
	// The old controller patches the state like this, on the main resource.
	patch := client.RawPatch("application/json-patch+json", []byte(`[{"op":"replace","path":"/status/status","value":"Assigned"}]`))
	if err := c.client.Patch(t.Context(), assigned, patch); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.status != http.StatusOK || !strings.Contains(got.body, clientID(1)) {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if err := c.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
}

func testStandardWaits(t *testing.T, c *cluster) {
	ns := c.namespace("standard-waits")
	_, upstream := azure(t)
	one, two, three := azureIdentity(ns, 1), azureIdentity(ns, 2), azureIdentity(ns, 3)
	c.apply(one, two, three, azureBinding(ns, 1, "none-yet"), azureBinding(ns, 2, "created"), azureBinding(ns, 3, "gone"))
	oldest := azureBinding(ns, 1, "x")
	oldest.Name = "oldest"
	c.apply(oldest)
	c.pod(ns, "none-yet", "none-yet", "127.0.5.1")
	c.apply(
		assignment(c.pod(ns, "created", "created", "127.0.5.2"), two, v1.AssignedIDCreated),
		assignment(c.pod(ns, "gone", "gone", "127.0.5.3"), three, v1.AssignedIDUnassigned),
		assignment(c.pod(ns, "legacy-state", "x", "127.0.5.4"), one, v1.AssignedIDLegacy),
	)
	flags := []string{"--retry-attempts-for-created=0", "--retry-attempts-for-assigned=0"}
	plain := start(t, c.config, upstream, flags...).ready()
	compatible := start(t, c.config, upstream, append(flags, "--set-retry-after-header")...).ready()
	for name, test := range map[string]struct {
		from, words string
		status      int
	}{
		"no assignment yet":    {"127.0.5.1", "NotAssigned", 404},
		"not attached yet":     {"127.0.5.2", "NotAttached", 404},
		"no longer assigned":   {"127.0.5.3", "NotAssigned", 404},
		"the oldest of states": {"127.0.5.4", clientID(1), 200},
	} {
		t.Run(name, func(t *testing.T) {
			got := plain.get(test.from, tokenPath+"?resource="+resource)
			if got.status != test.status || !strings.Contains(got.body, test.words) {
				t.Errorf("got %d %s", got.status, got.body)
			}
			if test.status != 404 {
				return
			}
			if got := compatible.get(test.from, tokenPath+"?resource="+resource); got.status != 503 || !strings.Contains(got.body, test.words) {
				t.Errorf("compatibility: got %d %s", got.status, got.body)
			}
		})
	}
}

func testLegacy(t *testing.T, c *cluster) {
	ns := c.namespace("legacy")
	_, upstream := azure(t)
	object := func(kind, name string, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": v1.GroupVersion.String(), "kind": kind, "metadata": map[string]any{"namespace": ns, "name": name}, "spec": spec,
		}}
	}
	c.apply(
		object("AzureIdentity", "id-1", map[string]any{"type": int64(0), "ResourceID": armID("id-1"), "ClientID": clientID(1)}),
		object("AzureIdentityBinding", "b", map[string]any{"AzureIdentity": "id-1", "Selector": "app"}),
		object("AzurePodIdentityException", "e", map[string]any{"PodLabels": map[string]any{"except": "me"}}),
	)
	c.pod(ns, "pod", "app", "127.0.6.1")
	c.exceptedPod(ns, "127.0.6.2")
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	if got := r.get("127.0.6.1", tokenPath+"?resource="+resource+"&client_id="+clientID(1)); got.status != 200 || !strings.Contains(got.body, clientID(1)) {
		t.Errorf("got %d %s", got.status, got.body)
	}
	got := r.get("127.0.6.2", tokenPath+"?api-version=2018-02-01&resource="+resource+"&client_id="+clientID(4))
	if got.status != 200 || !strings.Contains(got.body, clientID(4)) {
		t.Errorf("excepted: got %d %s", got.status, got.body)
	}
}

func (c *cluster) exceptedPod(ns, address string) {
	c.t.Helper()
	c.podWith(metav1.ObjectMeta{Namespace: ns, Name: "excepted", Labels: map[string]string{"except": "ME"}}, address)
}

func testException(t *testing.T, c *cluster) {
	ns := c.namespace("exception")
	sim, upstream := azure(t)
	c.apply(&v1.AzurePodIdentityException{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "e"},
		Spec: v1.AzurePodIdentityExceptionSpec{PodLabels: map[string]string{"except": "me"}}})
	c.exceptedPod(ns, "127.0.7.1")
	r := start(t, c.config, upstream).ready()
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}, "mi_res_id": {armID("id-3")}}.Encode()
	if got := r.get("127.0.7.1", "/Metadata/identity/oauth2/token?"+query); got.status != 200 || !strings.Contains(got.body, clientID(3)) {
		t.Errorf("got %d %s", got.status, got.body)
	}
	entries := sim.Journal.Since(0)
	if last := entries[len(entries)-1]; last.Path != tokenPath || last.Query != query {
		t.Errorf("the service saw %s?%s", last.Path, last.Query)
	}
	if got := probe(t, r.metrics, "/metrics").body; !strings.Contains(got, `aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token_msi_userassignedid"} 1`) || !strings.Contains(got, `nmi_decisions_total{reason="Exception",route="token"} 1`) {
		t.Error("what is forwarded is not counted")
	}
	before := len(entries)
	if got := r.get("127.0.7.1", "/metadata/identity/issuecredential"); got.status != 404 || len(sim.Journal.Since(0)) != before {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func testObjectID(t *testing.T, c *cluster) {
	ns := c.namespace("object-id")
	_, upstream := azure(t)
	for n := range 3 {
		c.apply(azureIdentity(ns, n+1), azureBinding(ns, n+1, "app"))
	}
	c.pod(ns, "pod", "app", "127.0.8.1")
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	for n := range 3 {
		got := r.get("127.0.8.1", tokenPath+"?resource="+resource+"&object_id="+strings.ToUpper(objectID(n+1)))
		if got.status != 200 || !strings.Contains(got.body, clientID(n+1)) {
			t.Errorf("object ID %d: got %d", n+1, got.status)
		}
	}
	if got := r.get("127.0.8.1", tokenPath+"?resource="+resource+"&object_id="+objectID(4)); got.status != 400 {
		t.Errorf("another principal's: got %d", got.status)
	}
}

func testEvents(t *testing.T, c *cluster) {
	ns := c.namespace("events")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureIdentity(ns, 2), azureIdentity(ns, 3), azureBinding(ns, 1, "app"), azureBinding(ns, 2, "app"))
	c.pod(ns, "pod", "app", "127.0.9.1")
	events := c.events(ns)
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	for range 5 {
		r.get("127.0.9.1", tokenPath+"?resource="+resource)
		r.get("127.0.9.1", tokenPath+"?resource=r&client_id="+clientID(3))
	}
	seen := map[string]int32{}
	for len(seen) < 2 {
		event := events()
		if event.InvolvedObject.Name != "pod" || event.Type != corev1.EventTypeWarning || event.Count > 1 {
			t.Errorf("event %+v", event)
		}
		seen[event.Reason] = event.Count
	}
	if seen[string(v1.ReasonSeveralIdentities)] != 1 || seen[string(v1.ReasonNotBound)] != 1 {
		t.Errorf("got %v", seen)
	}
}

func testProbes(t *testing.T, c *cluster) {
	ns := c.namespace("probes")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "app"))
	c.pod(ns, "pod", "app", "127.0.10.1")
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	if got := probe(t, r.probes, "/readyz"); got.status != 200 || got.body != "ok" {
		t.Errorf("/readyz: %d %s", got.status, got.body)
	}
	if got := probe(t, r.probes, "/readyz?verbose"); got.status != 200 || got.body != "[+]rules ok\n[+]caches ok\n[+]listener ok\n[+]shutdown ok\n[+]callers ok\n[+]probe ok\nreadyz check passed\n" {
		t.Errorf("/readyz?verbose: %d %s", got.status, got.body)
	}
	if got := probe(t, r.probes, "/healthz"); got.status != 200 || got.body != "Active" {
		t.Errorf("/healthz: %d %s", got.status, got.body)
	}
	broken := errors.New("the chain is gone")
	r.redirect.broken.Store(&broken)
	for _, path := range []string{"/readyz", "/healthz"} {
		if got := probe(t, r.probes, path); got.status != 503 || !strings.Contains(got.body, "the chain is gone") {
			t.Errorf("%s with broken rules: %d %s", path, got.status, got.body)
		}
	}
	if got := probe(t, r.probes, "/debug/pprof/"); got.status != 404 {
		t.Errorf("pprof: %d", got.status)
	}
	for _, target := range []string{"?resource=" + resource, "?resource=" + resource, "?resource=invented-" + ns, "?client_id=a"} {
		r.get("127.0.10.1", tokenPath+target)
	}
	metrics := probe(t, r.metrics, "/metrics").body
	for _, line := range []string{
		`aadpodidentity_nmi_operations_duration_seconds_count{namespace="probes",operation_type="/metadata/identity/oauth2/token",resource="https://vault.azure.net",status_code="200"} 2`,
		`aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token_msi_userassignedid"} 1`,
		`aadpodidentity_imds_operations_errors_count{operation_type="adal_token_msi_userassignedid"} 1`,
		`nmi_decisions_total{reason="Issued",route="token"} 2`,
		`nmi_decisions_total{reason="InvalidRequest",route="token"} 1`,
		`nmi_token_cache_total{result="hit"} 1`,
		`nmi_token_cache_total{result="miss"} 2`,
		`nmi_upstream_duration_seconds_count{code="ok",upstream="imds"} 1`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("metrics lack %s", line)
		}
	}
	if strings.Contains(metrics, "invented") {
		t.Error("a caller chose the value of a label")
	}
	if err := r.stop(); err != nil { // decisions are written in the background
		t.Error(err)
	}
	log := r.log.String()
	for _, part := range []string{"outcome=issued", "reason=Issued", "pod=probes/pod", "identity=probes/id-1", "serviceAccount=app", "resource=" + resource} {
		if !strings.Contains(log, part) {
			t.Errorf("the audit line lacks %s", part)
		}
	}
	if strings.Contains(log, "eyJ") {
		t.Error("the log holds a token")
	}
}

// What the agent may do of it, and where, is tested with the chart.
func testUntaint(t *testing.T, c *cluster) {
	_, upstream := azure(t)
	c.apply(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "example.com/agent", Effect: corev1.TaintEffectNoSchedule}}}})
	start(t, c.config, upstream, "--startup-taint-key=example.com/agent").ready()
	tainted := func() bool {
		var node corev1.Node
		if err := c.client.Get(t.Context(), client.ObjectKey{Name: nodeName}, &node); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "example.com/agent" })
	}
	for deadline := time.Now().Add(30 * time.Second); tainted(); {
		if time.Now().After(deadline) {
			t.Fatal("the taint stays")
		}
	}
}
