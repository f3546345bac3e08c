package v1_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// testDeadFields: what nobody reads is kept all the same, through the API server
// and through our types, since it is a user's, or an old program's.
func testDeadFields(t *testing.T, c client.Client) {
	for name, test := range map[string]struct {
		text  *unstructured.Unstructured
		typed client.Object
		dead  [][]string
	}{
		"AzureIdentity": {
			object(t, managed, "dead", "type: 0, resourceID: "+resourceID+", clientID: "+clientID+", adResourceID: https://x, replicas: 3"),
			&v1.AzureIdentity{}, [][]string{{"spec", "adResourceID"}, {"spec", "replicas"}},
		},
		"AzureIdentityBinding": {
			object(t, bound, "dead", "azureIdentity: dead, selector: s, weight: 7"),
			&v1.AzureIdentityBinding{}, [][]string{{"spec", "weight"}},
		},
		"AzureAssignedIdentity": {
			object(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureAssignedIdentity
metadata: {name: dead, namespace: default}
spec: {pod: p, podNamespace: default, nodename: node-0, replicas: 2}
status: {status: Created, availableReplicas: 1}
`),
			&v1.AzureAssignedIdentity{}, [][]string{{"spec", "replicas"}, {"status", "availableReplicas"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := values(t, test.text, test.dead)
			if err := c.Create(t.Context(), test.text.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			key := client.ObjectKeyFromObject(test.text)
			if err := c.Get(t.Context(), key, test.typed); err != nil {
				t.Fatal(err)
			}
			test.typed.SetLabels(map[string]string{"edited": "yes"})
			if err := c.Update(t.Context(), test.typed); err != nil {
				t.Fatal(err)
			}
			if err := c.Get(t.Context(), key, test.text); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, values(t, test.text, test.dead)); diff != "" {
				t.Errorf("after a round trip (-want +got):\n%s", diff)
			}
		})
	}
}

// values are those of fields that must be there.
func values(t *testing.T, object *unstructured.Unstructured, paths [][]string) []any {
	t.Helper()
	var out []any
	for _, path := range paths {
		value, ok, err := unstructured.NestedFieldNoCopy(object.Object, path...)
		if err != nil || !ok {
			t.Fatalf("%v is not there: %v", path, err)
		}
		out = append(out, value)
	}
	return out
}

// testNotPruned: the keys of the oldest tutorials are in etcd as they were
// written, also after an edit by a program that knows today's.
func testNotPruned(t *testing.T, c client.Client) {
	text := object(t, managed, "oldest", "type: 1, ResourceID: "+resourceID+", ClientID: c, TenantID: t, ClientPassword: {Name: s, Namespace: ns}")
	if err := c.Create(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	var typed v1.AzureIdentity
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(text), &typed); err != nil {
		t.Fatal(err)
	}
	typed.Labels = map[string]string{"edited": "yes"}
	if err := c.Update(t.Context(), &typed); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(text), text); err != nil {
		t.Fatal(err)
	}
	got := values(t, text, [][]string{{"spec", "ResourceID"}, {"spec", "ClientID"}, {"spec", "TenantID"}, {"spec", "ClientPassword", "Name"}})
	if diff := cmp.Diff([]any{resourceID, "c", "t", "s"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
