package nmi

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	corev1 "k8s.io/api/core/v1"
	"software.sslmate.com/src/go-pkcs12"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

func TestPrincipals(t *testing.T) {
	c := newCluster(t)
	for name, test := range map[string]func(*testing.T, *cluster){
		"an SDK gets the token of a secret":           testSecret,
		"a changed Secret is seen":                    testRotation,
		"an SDK gets the token of a certificate":      testCertificate,
		"auxiliary tenants are an array":              testAuxiliaryTenants,
		"a volume driver asks for a pod":              testHostToken,
		"nothing leaves for an attacker":              testAttacker,
		"cross-namespace Secrets by the flag alone":   testCrossNamespace,
		"no output holds a secret, token or key":      testNothingIsTold,
		"a resource ID alone is never the default":    testResourceIDAlone,
		"metadata is given by an explicit list alone": testAllowedMetadata,
	} {
		t.Run(name, func(t *testing.T) { test(t, c.in(t)) })
	}
}

// token asks for one and returns its claims.
func (r *running) token(address, query string) (map[string]any, reaction) {
	r.t.Helper()
	got := r.get(address, tokenPath+"?"+query)
	var body struct {
		Token string `json:"access_token"`
	}
	if got.status != http.StatusOK {
		return nil, got
	}
	if err := json.Unmarshal([]byte(got.body), &body); err != nil {
		r.t.Fatalf("%s: %v", got.body, err)
	}
	return claims(r.t, body.Token), got
}

func testSecret(t *testing.T, c *cluster) {
	ns := c.namespace("secret")
	w := newClouds(t)
	_, upstream := azure(t)
	id := servicePrincipal(ns, "app", v1.ServicePrincipal)
	c.apply(id, bindingFor(id, "app"), secretFor(ns, "app", "clientSecret", appSecret))
	c.pod(ns, "pod", "app", "127.2.1.1")
	for _, mode := range []string{"managed", "standard"} {
		t.Run(mode, func(t *testing.T) {
			r := c.in(t).startIn(w, upstream, "--operation-mode="+mode)
			_, options := scope(100 + len(mode))
			token, err := r.credential("127.2.1.1", azidentity.ClientID(appID)).GetToken(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			if got := claims(t, token.Token); got["appid"] != appID || got["tid"] != homeTenant || got["appidacr"] != "1" {
				t.Errorf("got %v", got)
			}
			before := tokens(w.home)
			got, body := r.token("127.2.1.1", "resource=https://database.windows.net/")
			if got["aud"] != "https://database.windows.net/" {
				t.Errorf("a slash at the end of the resource was lost: %v", got["aud"])
			}
			var fields map[string]string
			if err := json.Unmarshal([]byte(body.body), &fields); err != nil {
				t.Fatalf("not strings throughout: %v", err)
			}
			for _, name := range []string{"access_token", "client_id", "expires_in", "expires_on", "ext_expires_in", "not_before", "resource", "token_type"} {
				if fields[name] == "" {
					t.Errorf("no %s in the answer", name)
				}
			}
			r.token("127.2.1.1", "resource=https://database.windows.net/")
			if n := tokens(w.home) - before; n != 1 {
				t.Errorf("%d requests to Entra for two of the pod's", n)
			}
			if metrics := probe(t, r.metrics, "/metrics").body; !strings.Contains(metrics, `aadpodidentity_imds_operations_duration_seconds_count{operation_type="adal_token"} 2`+"\n") {
				t.Error("metrics lack the requests to Entra")
			}
		})
	}
}

func testRotation(t *testing.T, c *cluster) {
	ns := c.namespace("rotation")
	w := newClouds(t)
	_, upstream := azure(t)
	id := servicePrincipal(ns, "app", v1.ServicePrincipal)
	c.apply(id, bindingFor(id, "app"))
	c.pod(ns, "pod", "app", "127.2.2.1")
	r := c.startIn(w, upstream, "--operation-mode=managed", "--secret-max-age=1ns")
	secret := secretFor(ns, "app", "clientSecret", "wr0ng")
	for _, step := range []struct {
		name   string
		do     func()
		status int
		words  string
	}{
		{"none yet", func() {}, 404, "SecretNotFound"},
		{"a wrong one", func() { c.apply(secret) }, 400, "hint: the client secret in Secret rotation/app is wrong"},
		{"the right one", func() { c.write(secret, "clientSecret", appSecret) }, 200, appID},
		{"it is kept", func() {}, 200, appID},
		{"a wrong one again: its token is not served", func() { c.write(secret, "clientSecret", "wr0ng") }, 400, "AADSTS7000215"},
		{"under another name", func() { delete(secret.Data, "clientSecret"); c.write(secret, "password", appSecret) }, 200, appID},
		{"under two", func() { c.write(secret, "other", "x") }, 403, "InvalidSecret"},
	} {
		step.do()
		if got := r.get("127.2.2.1", tokenPath+"?resource="+resource); got.status != step.status || !strings.Contains(got.body, step.words) {
			t.Errorf("%s: got %d %s", step.name, got.status, got.body)
		}
	}
	if metrics := probe(t, r.metrics, "/metrics").body; !strings.Contains(metrics, `aadpodidentity_kubernetes_api_operations_errors_count{operation_type="get_secret"} 1`+"\n") {
		t.Error("metrics lack the reading that failed")
	}
}

func (c *cluster) write(secret *corev1.Secret, key, value string) {
	c.t.Helper()
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	secret.Data[key] = []byte(value)
	if err := c.client.Update(c.t.Context(), secret); err != nil {
		c.t.Fatal(err)
	}
}

// keyed makes a certificate with its key: as PFX, and each as PEM.
func keyed(t testing.TB) (pfx, certificatePEM, keyPEM string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certificate := simtest.Certify(t, key, time.Now().Add(time.Hour))
	packed, err := pkcs12.Modern2023.Encode(key, certificate, nil, "pfx-pässword")
	if err != nil {
		t.Fatal(err)
	}
	return string(packed), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})),
		string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

func testCertificate(t *testing.T, c *cluster) {
	ns := c.namespace("certificate")
	pfx, certificate, key := keyed(t)
	w := newClouds(t, certificate)
	_, upstream := azure(t)
	for name, secret := range map[string]*corev1.Secret{
		"pfx": secretFor(ns, "pfx", "certificate", pfx, "password", "pfx-pässword"),
		"pem": secretFor(ns, "pem", "certificate", certificate+key),
	} {
		id := servicePrincipal(ns, name, v1.ServicePrincipalCertificate)
		c.apply(id, bindingFor(id, name), secret)
	}
	c.pod(ns, "pfx", "pfx", "127.2.3.1")
	c.pod(ns, "pem", "pem", "127.2.3.2")
	r := c.startIn(w, upstream)
	for name, address := range map[string]string{"pfx": "127.2.3.1", "pem": "127.2.3.2"} {
		if got, body := r.token(address, "resource="+resource); got["appid"] != appID || got["appidacr"] != "2" {
			t.Errorf("%s: %v, %s", name, got, body.body)
		}
	}
}

func testAuxiliaryTenants(t *testing.T, c *cluster) {
	ns := c.namespace("auxiliary")
	w := newClouds(t)
	_, upstream := azure(t)
	for name, tenants := range map[string][]string{"two": {otherTenant}, "same": {otherTenant, otherTenant, homeTenant}, "wrong": {"eeeeeeee-0000-4000-8000-000000000001"}} {
		id := servicePrincipal(ns, name, v1.ServicePrincipal)
		id.Spec.AuxiliaryTenantIDs = tenants
		c.apply(id, bindingFor(id, name), secretFor(ns, name, "clientSecret", appSecret))
	}
	addresses := map[string]string{"two": "127.2.4.1", "same": "127.2.4.2", "wrong": "127.2.4.3"}
	for name, address := range addresses {
		c.pod(ns, name, name, address)
	}
	r := c.startIn(w, upstream)
	for name, want := range map[string]string{"two": homeTenant + " " + otherTenant, "same": homeTenant + " " + otherTenant + " " + otherTenant + " " + homeTenant} {
		got := r.get(addresses[name], tokenPath+"?resource="+resource)
		var all []struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal([]byte(got.body), &all); err != nil {
			t.Fatalf("%s: %s: %v", name, got.body, err)
		}
		var tenants []string
		for _, one := range all {
			tenants = append(tenants, fmt.Sprint(claims(t, one.Token)["tid"]))
		}
		if strings.Join(tenants, " ") != want {
			t.Errorf("%s: got tokens of %v", name, tenants)
		}
	}
	// All of them, or none; and never 503, which would be asked again.
	if got := r.get(addresses["wrong"], tokenPath+"?resource="+resource); got.status != 400 || !strings.Contains(got.body, "AADSTS90002") && !strings.Contains(got.body, "UpstreamRefused") {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if got := r.host("two", ns); got.status != 200 || !strings.HasPrefix(got.body, `{"token":{"access_token":`) || !strings.HasSuffix(got.body, `,"clientid":"`+appID+`"}`) {
		t.Errorf("the node got %d %s", got.status, got.body)
	}
}

// host asks as a program of the node does.
func (r *running) host(pod, namespace string) reaction {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://agent.invalid/host/token/?resource="+resource, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header["podname"], request.Header["podns"] = []string{pod}, []string{namespace}
	return do(r.t, r.as("127.0.0.1"), request)
}

func testHostToken(t *testing.T, c *cluster) {
	ns := c.namespace("host")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "app"))
	// The volume of a pod is mounted before it has an address.
	c.pod(ns, "pending", "app", "")
	c.pod(ns, "bare", "", "127.2.5.1")
	r := start(t, c.config, upstream, "--operation-mode=managed", "--set-retry-after-header").ready()
	got := r.host("pending", ns)
	var body struct {
		Token    map[string]string `json:"token"`
		ClientID string            `json:"clientid"`
	}
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != 200 || body.ClientID != clientID(1) {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	if claims(t, body.Token["access_token"])["appid"] != clientID(1) {
		t.Error("a token of somebody else")
	}
	if got := r.host("none", ns); got.status != 404 || !strings.Contains(got.body, "runs no pod host/none") {
		t.Errorf("another node's pod: %d %s", got.status, got.body)
	}
	if got := r.host("bare", ns); got.status != 400 || !strings.Contains(got.body, "NotSelected") {
		t.Errorf("a pod without a label: %d %s", got.status, got.body)
	}
	if metrics := probe(t, r.metrics, "/metrics").body; !strings.Contains(metrics, `aadpodidentity_nmi_operations_duration_seconds_count{namespace="host",operation_type="/host/token",resource="https://vault.azure.net",status_code="200"} 1`) {
		t.Error("metrics lack the request")
	}
}

func testCrossNamespace(t *testing.T, c *cluster) {
	ns, far := c.namespace("crossing"), c.namespace("crossed")
	w := newClouds(t)
	_, upstream := azure(t)
	id := servicePrincipal(ns, "app", v1.ServicePrincipal)
	id.Spec.ClientPassword.Namespace = far
	c.apply(id, bindingFor(id, "app"), secretFor(far, "app", "clientSecret", appSecret))
	c.pod(ns, "pod", "app", "127.2.6.1")
	if got := c.startIn(w, upstream, "--operation-mode=managed").get("127.2.6.1", tokenPath+"?resource="+resource); got.status != 403 || !strings.Contains(got.body, "SecretForbidden") {
		t.Errorf("got %d %s", got.status, got.body)
	}
	events := c.events(ns)
	r := c.startIn(w, upstream, "--operation-mode=managed", "--allow-cross-namespace-secrets")
	if got := r.get("127.2.6.1", tokenPath+"?resource="+resource); got.status != 200 {
		t.Errorf("allowed: got %d %s", got.status, got.body)
	}
	for {
		if event := events(); event.Reason == string(v1.ReasonCrossNamespaceSecret) && event.InvolvedObject.Name == "pod" {
			return
		}
	}
}

// A managed identity of before there was validation can lack its client ID. It
// must never be answered with the node's default identity.
func testResourceIDAlone(t *testing.T, c *cluster) {
	ns := c.namespace("resource-id")
	sim, upstream := azure(t)
	id, none := azureIdentity(ns, 2), azureIdentity(ns, 3)
	assigned, broken := assignment(c.pod(ns, "pod", "alone", "127.2.7.1"), id, v1.AssignedIDAssigned), assignment(c.pod(ns, "none", "none", "127.2.7.2"), none, v1.AssignedIDAssigned)
	assigned.Spec.AzureIdentityRef.Spec.ClientID = ""
	broken.Spec.AzureIdentityRef.Spec.ClientID, broken.Spec.AzureIdentityRef.Spec.ResourceID = "", ""
	c.apply(azureBinding(ns, 2, "alone"), assigned, broken)
	r := start(t, c.config, upstream, "--assignment-wait=0s").ready()
	if got, body := r.token("127.2.7.1", "resource="+resource); got["appid"] != clientID(2) {
		t.Errorf("got %v, %s", got["appid"], body.body)
	}
	if got := r.get("127.2.7.2", tokenPath+"?resource="+resource); got.status != 403 || !strings.Contains(got.body, "InvalidIdentity") {
		t.Errorf("without either: %d %s", got.status, got.body)
	}
	for _, e := range sim.Journal.Since(0) {
		if !strings.Contains(e.Query, "msi_res_id=") {
			t.Errorf("the service was asked %s", e.Query)
		}
	}
}

func testAllowedMetadata(t *testing.T, c *cluster) {
	ns := c.namespace("metadata")
	sim, upstream := azure(t)
	c.pod(ns, "pod", "", "127.2.8.1")
	for flag, want := range map[string]int{"--allowed-metadata=scheduledevents": 0, "--allowed-metadata=attested": 1} {
		before := len(sim.Journal.Since(0))
		start(t, c.config, upstream, flag).ready().get("127.2.8.1", "/metadata/attested/document?api-version=2021-02-01")
		if got := len(sim.Journal.Since(0)) - before; got != want {
			t.Errorf("%s: %d requests reached the service", flag, got)
		}
	}
}
