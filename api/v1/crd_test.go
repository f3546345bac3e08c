package v1_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

const (
	resourceID = "/subscriptions/11111111-2222-3333-4444-555555555555/resourcegroups/demo/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo1"
	clientID   = "22222222-3333-4444-5555-666666666666"
)

// TestCustomResourceDefinitions runs everything that the shipped definitions
// promise against one API server.
func TestCustomResourceDefinitions(t *testing.T) {
	cluster := env.StartCluster(t)
	c, err := client.New(cluster.Config, client.Options{Scheme: env.Scheme(), FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("objects as tutorials print them", func(t *testing.T) { testAccepted(t, c) })
	t.Run("objects that cannot work are refused with the remedy", func(t *testing.T) { testRefused(t, c) })
	t.Run("old spellings survive and read as their twins", func(t *testing.T) { testLegacyRoundTrip(t, c) })
	t.Run("an old invalid object", func(t *testing.T) { testRatcheting(t, c, cluster.EtcdURL) })
	t.Run("an assignment keeps its status and its copies", func(t *testing.T) { testAssignedIdentity(t, c) })
	t.Run("20 dead fields are kept", func(t *testing.T) { testDeadFields(t, c) })
	t.Run("25 legacy keys are not pruned", func(t *testing.T) { testNotPruned(t, c) })
	t.Run("printer columns", func(t *testing.T) { testColumns(t, cluster) })
}

const managed = `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: %s, namespace: default}
spec: {%s}
`

const bound = `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: %s, namespace: default}
spec: {%s}
`

func object(t *testing.T, text string, args ...any) *unstructured.Unstructured {
	t.Helper()
	out := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(fmt.Appendf(nil, text, args...), out); err != nil {
		t.Fatal(err)
	}
	return out
}

func testAccepted(t *testing.T, c client.Client) {
	for name, test := range map[string]struct{ form, spec string }{
		"managed":            {managed, "type: 0, resourceID: " + resourceID + ", clientID: " + clientID},
		"no-type":            {managed, "resourceID: " + resourceID + ", clientID: " + clientID},
		"upper-case":         {managed, "resourceID: " + strings.ToUpper(resourceID) + ", clientID: " + clientID},
		"secret":             {managed, "type: 1, tenantID: t, clientID: c, clientPassword: {name: s, namespace: default}"},
		"aux-tenants":        {managed, "type: 1, tenantID: t, clientID: c, clientPassword: {name: s, namespace: default}, auxiliaryTenantIDs: [a, b, c]"},
		"null-tenants":       {managed, "auxiliaryTenantIDs: null, replicas: null, resourceID: " + resourceID + ", clientID: " + clientID},
		"certificate-legacy": {managed, "type: 2, TenantID: t, ClientID: c, ClientPassword: {Name: s, Namespace: default}"},
		"dead-fields":        {managed, "replicas: 1, adResourceID: x, adEndpoint: https://login.microsoftonline.us/, resourceID: " + resourceID + ", clientID: " + clientID},
		"federated":          {managed, "clientID: c, federation: {audience: api://AzureADTokenExchange}"},
		"empty-metadata":     {managed, "metadata: {}, resourceID: " + resourceID + ", clientID: " + clientID},
		"all-legacy":         {managed, "ResourceID: " + resourceID + ", ClientID: " + clientID},
		"bound":              {bound, "azureIdentity: demo1, selector: demo, weight: 3"},
		"bound-legacy":       {bound, "AzureIdentity: demo1, Selector: demo"},
		"bound-star":         {bound, "azureIdentity: demo1, selector: '*'"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.Create(t.Context(), object(t, test.form, "ok-"+name, test.spec)); err != nil {
				t.Error(err)
			}
		})
	}
}

func testRefused(t *testing.T, c client.Client) {
	id := "clientID: " + clientID
	for name, test := range map[string]struct{ form, spec, words string }{
		"unknown type":                {managed, "type: 3, " + id, "type must be 0"},
		"no resourceID":               {managed, id, "resourceID is required for type 0"},
		"no clientID":                 {managed, "resourceID: " + resourceID, "clientID is required"},
		"unparsable resourceID":       {managed, "resourceID: invalidresid, " + id, "resourceID must read /subscriptions/"},
		"resourceID without its type": {managed, "resourceID: /subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/keyvault, " + id, "resourceID must read"},
		"text before the resourceID":  {managed, "resourceID: x" + resourceID + ", " + id, "resourceID must read"},
		"angle placeholder":           {managed, "resourceID: '/subscriptions/<SubscriptionID>/x', " + id, "placeholder"},
		"curly placeholder":           {managed, "resourceID: '/subscriptions/{id}/x', " + id, "placeholder"},
		"dotted placeholder":          {managed, "resourceID: /subscriptions/.../demo, " + id, "placeholder"},
		"placeholder as a client ID":  {managed, "clientID: '<client id>', resourceID: " + resourceID, "clientID still holds a placeholder"},
		"old spelling, unparsable":    {managed, "ResourceID: nope, ClientID: x", "ResourceID must read"},
		"spellings that differ":       {managed, "resourceID: " + resourceID + ", ClientID: a, clientID: b", "keep clientID only"},
		"secret names that differ":    {managed, "type: 1, tenantID: t, clientID: c, ClientPassword: {name: a, Name: b, namespace: ns}", "keep name only"},
		"principal without a tenant":  {managed, "type: 1, clientPassword: {name: a, namespace: b}, " + id, "tenantID is required"},
		"principal without a secret":  {managed, "type: 2, tenantID: t, " + id, "clientPassword is required"},
		"four auxiliary tenants":      {managed, "type: 1, tenantID: t, clientPassword: {name: a, namespace: b}, auxiliaryTenantIDs: [a, b, c, d], " + id, "at most 3 tenants"},
		"federated with a secret":     {managed, "type: 1, tenantID: t, clientPassword: {name: a, namespace: b}, federation: {}, " + id, "federation goes with type 0 only"},
		"unknown key":                 {managed, "clientId: c, resourceID: " + resourceID, `unknown field "spec.clientId"`},
		"binding without identity":    {bound, "selector: demo", "azureIdentity is required"},
		"binding without selector":    {bound, "azureIdentity: demo", "selector is required"},
		"binding to a placeholder":    {bound, "azureIdentity: '<name>', selector: demo", "placeholder"},
		"binding spelled twice":       {bound, "azureIdentity: demo, selector: a, Selector: b", "keep selector only"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), object(t, test.form, "refused", test.spec))
			if err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want words %q", err, test.words)
			}
		})
	}
}

func testLegacyRoundTrip(t *testing.T, c client.Client) {
	text := object(t, managed, "legacy", "type: 2, ResourceID: "+resourceID+", ClientID: c, TenantID: t, ClientPassword: {Name: s, Namespace: ns}")
	if err := c.Create(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	var got v1.AzureIdentity
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "legacy"}, &got); err != nil {
		t.Fatal(err)
	}
	spec, err := got.Spec.Normalized()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.AzureIdentitySpec{Type: 2, ResourceID: resourceID, ClientID: "c", TenantID: "t", ClientPassword: &v1.SecretReference{Name: "s", Namespace: "ns"}}
	if diff := cmp.Diff(want, spec); diff != "" {
		t.Error(diff)
	}
	exception := object(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzurePodIdentityException
metadata: {name: legacy, namespace: default}
spec: {PodLabels: {app: mic}}
`)
	if err := c.Create(t.Context(), exception); err != nil {
		t.Fatal(err)
	}
	var read v1.AzurePodIdentityException
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(exception), &read); err != nil {
		t.Fatal(err)
	}
	labels, err := read.Spec.Normalized()
	if diff := cmp.Diff(map[string]string{"app": "mic"}, labels.PodLabels); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// testRatcheting puts an object into etcd that the API refuses today, as an older
// API let it in.
func testRatcheting(t *testing.T, c client.Client, etcd string) {
	key := client.ObjectKey{Namespace: "default", Name: "old"}
	putEtcd(t, etcd, "/registry/"+v1.Group+"/azureidentities/default/old", `{"apiVersion":"aadpodidentity.k8s.io/v1","kind":"AzureIdentity",
		"metadata":{"name":"old","namespace":"default","uid":"0f0f0f0f-0000-4000-8000-000000000001","creationTimestamp":"2020-01-01T00:00:00Z","generation":1},
		"spec":{"type":0,"resourceID":"invalidresid","metadata":{"creationTimestamp":null}},"status":{}}`)
	get := func() *unstructured.Unstructured {
		out := object(t, managed, key.Name, "")
		if err := c.Get(t.Context(), key, out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	edited := get()
	edited.SetLabels(map[string]string{"a": "b"})
	if err := c.Update(t.Context(), edited); err != nil {
		t.Errorf("a metadata edit was refused: %v", err)
	}
	set(t, edited, []any{map[string]any{"type": v1.ConditionReady, "status": "False", "reason": string(v1.ReasonInvalidIdentity), "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"}}, "status", "conditions")
	if err := c.Status().Update(t.Context(), edited); err != nil {
		t.Errorf("a status edit was refused: %v", err)
	}
	edited = get()
	set(t, edited, clientID, "spec", "clientID")
	if err := c.Update(t.Context(), edited); err == nil {
		t.Error("a spec edit that left the error in passed")
	}
	edited = get()
	set(t, edited, clientID, "spec", "clientID")
	set(t, edited, resourceID, "spec", "resourceID")
	if err := c.Update(t.Context(), edited); err != nil {
		t.Errorf("a spec edit that mended the object was refused: %v", err)
	}
}

func set(t *testing.T, object *unstructured.Unstructured, value any, path ...string) {
	t.Helper()
	if err := unstructured.SetNestedField(object.Object, value, path...); err != nil {
		t.Fatal(err)
	}
}

func testAssignedIdentity(t *testing.T, c client.Client) {
	assigned := object(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureAssignedIdentity
metadata: {name: demo-default-demo1, namespace: default, labels: {nodename: n1}}
spec:
  pod: demo
  podNamespace: default
  nodename: n1
  azureIdentityRef:
    apiVersion: aadpodidentity.k8s.io/v1
    kind: AzureIdentity
    metadata: {name: demo1, namespace: default}
    spec: {resourceID: whatever, ClientID: c, unheardOf: 1}
  azureBindingRef:
    apiVersion: aadpodidentity.k8s.io/v1
    kind: AzureIdentityBinding
    metadata: {name: b, namespace: default}
    spec: {}
status: {status: Created, availableReplicas: 1}
`)
	if err := c.Create(t.Context(), assigned); err != nil {
		t.Fatal(err)
	}
	patch := client.RawPatch("application/json-patch+json", []byte(`[{"op":"replace","path":"/status/status","value":"Assigned"}]`))
	if err := c.Patch(t.Context(), assigned, patch); err != nil {
		t.Fatal(err)
	}
	var got v1.AzureAssignedIdentity
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(assigned), &got); err != nil {
		t.Fatal(err)
	}
	if got.Status.Status != v1.AssignedIDAssigned || got.Spec.NodeName != "n1" {
		t.Errorf("got status %q on node %q", got.Status.Status, got.Spec.NodeName)
	}
	if got.Spec.AzureIdentityRef.Spec.LegacyClientID != "c" {
		t.Errorf("the copy lost a field: %+v", got.Spec.AzureIdentityRef.Spec)
	}
}

func testColumns(t *testing.T, cluster env.Cluster) {
	for resource, want := range map[string][]string{
		"azureidentities":            {"Name", "Type", "ClientID", "Age"},
		"azureidentitybindings":      {"Name", "AzureIdentity", "Selector", "Age"},
		"azureassignedidentities":    {"Name", "Age"},
		"azurepodidentityexceptions": {"Name", "Age"},
	} {
		t.Run(resource, func(t *testing.T) {
			if diff := cmp.Diff(want, columns(t, cluster, resource)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func columns(t *testing.T, cluster env.Cluster, resource string) []string {
	t.Helper()
	table := getTable(t, cluster, "/apis/aadpodidentity.k8s.io/v1/namespaces/default/"+resource)
	var out []string
	for _, column := range table.ColumnDefinitions {
		out = append(out, column.Name)
	}
	return out
}

func getTable(t *testing.T, cluster env.Cluster, path string) metav1.Table {
	t.Helper()
	transport, err := rest.TransportFor(cluster.Config)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+strings.Trim(strings.TrimPrefix(cluster.Config.Host, "https://"), "/")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var table metav1.Table
	if err := json.NewDecoder(response.Body).Decode(&table); err != nil {
		t.Fatal(err)
	}
	return table
}

func putEtcd(t *testing.T, url, key, value string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{
		"key":   base64.StdEncoding.EncodeToString([]byte(key)),
		"value": base64.StdEncoding.EncodeToString([]byte(value)),
	})
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v3/kv/put", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("etcd answered %s", response.Status)
	}
}
