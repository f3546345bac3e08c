package nmi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/otlp"
)

// testAttacker is somebody with the role edit in one namespace, who may write
// identities, bindings, pods and Secrets there, and owns an authority. Neither
// his authority nor Entra must get from the agent what is not his.
func testAttacker(t *testing.T, c *cluster) {
	ns, victim := c.namespace("attacker"), c.namespace("victim")
	w := newClouds(t)
	imds, upstream := azure(t)
	owned := servicePrincipal(victim, "app", v1.ServicePrincipal)
	c.apply(owned, bindingFor(owned, "victim"), secretFor(victim, "app", "clientSecret", appSecret), azureIdentity(victim, 1), azureBinding(victim, 1, "victim-managed"))
	token := secretFor(ns, "token", "token", "a-serviceaccount-token")
	token.Type = corev1.SecretTypeServiceAccountToken
	token.Annotations = map[string]string{corev1.ServiceAccountNameKey: "default"}
	c.apply(token, secretFor(ns, "own", "clientSecret", "his-own-secret"), secretFor(ns, "app", "clientSecret", "his-other-secret"))
	attempts := map[string]struct {
		change func(*v1.AzureIdentity)
		status int
		words  string
	}{
		"his authority":             {func(i *v1.AzureIdentity) { i.Spec.ADEndpoint = "https://" + attacker + "/" }, 403, "AuthorityForbidden"},
		"his authority behind an @": {func(i *v1.AzureIdentity) { i.Spec.ADEndpoint = "https://login.microsoftonline.com@" + attacker + "/" }, 403, "AuthorityForbidden"},
		"his authority as a tenant": {func(i *v1.AzureIdentity) { i.Spec.TenantID = "@" + attacker }, 403, "AuthorityForbidden"},
		"a tenant that climbs":      {func(i *v1.AzureIdentity) { i.Spec.TenantID = "../../" + attacker }, 403, "AuthorityForbidden"},
		"authority by http":         {func(i *v1.AzureIdentity) { i.Spec.ADEndpoint = "http://login.microsoftonline.com/" }, 403, "AuthorityForbidden"},
		"the victim's Secret":       {func(i *v1.AzureIdentity) { i.Spec.ClientPassword.Namespace = victim }, 403, "SecretForbidden"},
		"the same, to his authority": {func(i *v1.AzureIdentity) {
			i.Spec.ClientPassword.Namespace, i.Spec.ADEndpoint = victim, "https://"+attacker
		}, 403, "Forbidden"},
		"the same, as a certificate": {func(i *v1.AzureIdentity) { i.Spec.ClientPassword.Namespace, i.Spec.Type = victim, 2 }, 403, "SecretForbidden"},
		"a ServiceAccount's token":   {func(i *v1.AzureIdentity) { i.Spec.ClientPassword.Name = "token" }, 403, "SecretForbidden"},
		"his tenant, his own secret": {func(i *v1.AzureIdentity) { i.Spec.ClientPassword.Name = "own" }, 400, "AADSTS7000215"},
		"another tenant of auxiliary": {func(i *v1.AzureIdentity) {
			i.Spec.ClientPassword.Name, i.Spec.AuxiliaryTenantIDs = "own", []string{"x/../" + attacker}
		}, 400, "AADSTS7000215"},
	}
	n := 0
	addresses := map[string]string{}
	for name, attempt := range attempts {
		n++
		id := servicePrincipal(ns, fmt.Sprint("try-", n), v1.ServicePrincipal)
		id.Spec.ClientPassword.Name = "app"
		attempt.change(id)
		c.apply(id, bindingFor(id, id.Name))
		addresses[name] = fmt.Sprint("127.3.1.", n)
		c.pod(ns, id.Name, id.Name, addresses[name])
	}
	c.pod(ns, "stolen-selector", "victim", "127.3.1.101")
	c.pod(ns, "stolen-managed", "victim-managed", "127.3.1.102")
	r := c.startIn(w, upstream, "--assignment-wait=0s", "--forceNamespaced")
	for name, attempt := range attempts {
		got := r.get(addresses[name], tokenPath+"?resource=https://"+attacker)
		if got.status != attempt.status || !strings.Contains(got.body, attempt.words) {
			t.Errorf("%s: got %d %s", name, got.status, got.body)
		}
		if strings.Contains(got.body, appSecret) || strings.Contains(got.body, "a-serviceaccount-token") {
			t.Errorf("%s: the answer holds a secret", name)
		}
	}
	for _, address := range []string{"127.3.1.101", "127.3.1.102"} {
		if got := r.get(address, tokenPath+"?resource="+resource); got.status != 403 || !strings.Contains(got.body, "NamespaceMismatch") {
			t.Errorf("the victim's selector: got %d %s", got.status, got.body)
		}
	}
	if stolen := w.journalOfTheAttacker(); len(stolen) > 0 {
		t.Errorf("the attacker's authority was sent %q", stolen)
	}
	if n := tokens(w.home) + tokens(w.other); n > 0 {
		t.Errorf("Entra gave %d tokens", n)
	}
	if n := len(imds.Journal.Since(0)); n > 0 {
		t.Errorf("%d requests reached the metadata service", n)
	}
}

// testNothingIsTold looks for the values of a run in everything that it wrote.
func testNothingIsTold(t *testing.T, c *cluster) {
	ns := c.namespace("told")
	pfx, certificate, key := keyed(t)
	w := newClouds(t, certificate)
	_, upstream := azure(t)
	byPFX, byPEM := servicePrincipal(ns, "pfx", v1.ServicePrincipalCertificate), servicePrincipal(ns, "pem", v1.ServicePrincipalCertificate)
	bySecret, wrong := servicePrincipal(ns, "secret", v1.ServicePrincipal), servicePrincipal(ns, "wrong", v1.ServicePrincipal)
	secrets := []*corev1.Secret{
		secretFor(ns, "pfx", "certificate", pfx, "password", "pfx-pässword"), secretFor(ns, "pem", "certificate", certificate+key),
		secretFor(ns, "secret", "clientSecret", appSecret), secretFor(ns, "wrong", "other", "n0t-the-s3cret"),
	}
	for _, secret := range secrets {
		c.apply(secret)
	}
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "managed"), byPFX, bindingFor(byPFX, "pfx"), byPEM, bindingFor(byPEM, "pem"),
		bySecret, bindingFor(bySecret, "secret"), wrong, bindingFor(wrong, "wrong"))
	addresses := map[string]string{"managed": "127.3.2.1", "pfx": "127.3.2.2", "pem": "127.3.2.3", "secret": "127.3.2.4", "wrong": "127.3.2.5"}
	for name, address := range addresses {
		c.pod(ns, name, name, address)
	}
	events := c.events(ns)
	collector := otlp.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	r := c.startIn(w, upstream, "--operation-mode=managed", "-v=9")
	var issued, told []string
	for name, address := range addresses {
		got := r.get(address, tokenPath+"?resource="+resource)
		if name == "wrong" {
			told = append(told, got.body)
			continue
		}
		_, rest, _ := strings.Cut(got.body, `"access_token":"`)
		token, _, ok := strings.Cut(rest, `"`)
		if !ok || got.status != http.StatusOK {
			t.Fatalf("%s: %d %s", name, got.status, got.body)
		}
		issued = append(issued, token)
	}
	// The Secret under another key, and its refusal, are Events.
	for seen := map[string]bool{}; !seen[string(v1.ReasonUndocumentedKey)] || !seen[string(v1.ReasonUpstreamRefused)]; {
		event := events()
		seen[event.Reason] = true
		told = append(told, event.Reason+" "+event.Message+" "+metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: event.Labels}))
	}
	if err := r.stopTelling(&told); err != nil {
		t.Fatal(err)
	}
	told = append(told, collector.Raw(), c.everything(ns))
	all := strings.Join(told, "\n")
	if !strings.Contains(all, "outcome=issued") || !strings.Contains(all, "nmi_decisions_total") || !strings.Contains(all, "podidentity.reason") {
		t.Fatal("this is not all that was written")
	}
	forbidden := slices.Concat(issued, []string{appSecret, "n0t-the-s3cret", "pfx-pässword", "eyJ", "client_assertion", strings.Split(key, "\n")[3]})
	for _, value := range forbidden {
		if strings.Contains(all, value) {
			t.Errorf("something that was written holds %.12s…", value)
		}
	}
	testTraces(t, collector.Spans())
	if strings.Contains(all, pfx) {
		t.Error("something that was written holds a PFX")
	}
}

// everything returns all objects of a namespace that could say anything, but for
// Secrets, which are to.
func (c *cluster) everything(namespace string) string {
	c.t.Helper()
	var out strings.Builder
	for _, list := range []client.ObjectList{
		&corev1.PodList{}, &corev1.EventList{}, &corev1.ConfigMapList{},
		&v1.AzureIdentityList{}, &v1.AzureIdentityBindingList{}, &v1.AzureAssignedIdentityList{}, &v1.AzurePodIdentityExceptionList{}, &v1.AzureIdentityAttachmentList{},
	} {
		if err := c.client.List(c.t.Context(), list, client.InNamespace(namespace)); err != nil {
			c.t.Fatal(err)
		}
		text, err := json.Marshal(list)
		if err != nil {
			c.t.Fatal(err)
		}
		out.Write(text)
	}
	return out.String()
}

// testTraces: each request is a trace, with its decision and, where there was one,
// the request upstream that it led to.
func testTraces(t *testing.T, spans []otlp.Span) {
	t.Helper()
	requests, outcomes := map[string]string{}, map[string]int{}
	for _, s := range spans {
		if s.Name == "request" {
			requests[s.Trace] = s.ID
			outcomes[s.Attributes["podidentity.outcome"]]++
		}
		if s.Name == "request" && (s.Attributes["k8s.namespace.name"] != "told" || s.Attributes["podidentity.reason"] == "" || s.Attributes["http.route"] != "token") {
			t.Errorf("a request's span says %v", s.Attributes)
		}
	}
	steps := map[string]int{}
	for _, s := range spans {
		if s.Name != "request" && requests[s.Trace] != s.Parent {
			t.Errorf("span %s is none of a request's", s.Name)
		}
		steps[s.Name]++
	}
	if diff := cmp.Diff(map[string]int{"issued": 4, "refused": 1}, outcomes); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"request": 5, "identify": 5, "decide": 5, "upstream": 5}, steps); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
}

// stopTelling ends the agent and appends its metrics, probes and whole log.
func (r *running) stopTelling(told *[]string) error {
	r.t.Helper()
	*told = append(*told, probe(r.t, r.metrics, "/metrics").body, probe(r.t, r.probes, "/readyz").body)
	err := r.stop()
	*told = append(*told, r.log.String())
	return err
}
