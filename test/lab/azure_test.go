//go:build e2e

package lab_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// nodesIdentity is the identity of the nodes themselves, which the lab puts on
// each of them and which MIC uses.
func nodesIdentity() model.Identity {
	return model.Identity{
		ID:       "the nodes' own",
		ClientID: "22222222-3333-4444-8555-666666666666", PrincipalID: "33333333-4444-4555-8666-777777777777",
	}
}

// attachments is which identities are on which scale set or virtual machine, all
// by their ARM IDs in lower case.
type attachments map[string][]string

// with returns a copy that has the identity on the resource, too.
func (a attachments) with(resource string, identity model.Identity) attachments {
	out := attachments{}
	for id, attached := range a {
		out[id] = slices.Clone(attached)
	}
	if !a.has(resource, identity) {
		out[resource] = append(out[resource], strings.ToLower(identity.ID))
		slices.Sort(out[resource])
	}
	return out
}

func (a attachments) has(resource string, identity model.Identity) bool {
	return slices.Contains(a[resource], strings.ToLower(identity.ID))
}

// attached reads from Azure what is where at this moment.
func attached(t *testing.T) attachments {
	t.Helper()
	doc, err := lab.Sim.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := attachments{}
	for _, resource := range slices.Concat(doc.ScaleSets, doc.VirtualMachines) {
		ids := []string{}
		for _, id := range resource.UserAssigned {
			ids = append(ids, strings.ToLower(id))
		}
		slices.Sort(ids)
		out[strings.ToLower(resource.ID)] = ids
	}
	return out
}

// awaitAttached waits until exactly these identities are on each resource.
func awaitAttached(t *testing.T, want attachments) {
	t.Helper()
	awaitAzure(t, func(got attachments) string { return cmp.Diff(want, got) })
}

// awaitOff waits until an identity is off a resource.
func awaitOff(t *testing.T, resource string, identity model.Identity) {
	t.Helper()
	awaitAzure(t, func(got attachments) string {
		if got.has(resource, identity) {
			return identity.ID + " is still on " + resource
		}
		return ""
	})
}

// awaitAzure waits until the identities on the nodes' resources lack nothing. It
// looks again at each request to ARM, with which MIC follows its operations.
func awaitAzure(t *testing.T, lacks func(attachments) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for seq := journalEnd(t); ; {
		lack := lacks(attached(t))
		if lack == "" {
			return
		}
		entry, err := lab.Sim.Wait(ctx, seq, func(e journal.Entry) bool { return e.Surface == journal.ARM })
		if err != nil {
			t.Fatalf("waiting for the identities on the nodes' resources (-want +got): %v\n%s", err, lack)
		}
		seq = entry.Seq
	}
}

// quiet waits until nothing of earlier tests is left that MIC attached, and
// returns what is there then: it is others', and must stay.
func quiet(t *testing.T) attachments {
	t.Helper()
	awaitGone(t, func(*v1.AzureAssignedIdentity) bool { return true })
	awaitQuiet(t)
	return attached(t)
}

// resources returns the scale set or virtual machine of each node, by the node's
// name.
func resources(t *testing.T) map[string]string {
	t.Helper()
	var nodes corev1.NodeList
	if err := lab.Kube.List(t.Context(), &nodes); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, node := range nodes.Items {
		ref, err := compute.ParseProviderID(node.Spec.ProviderID)
		if err != nil {
			t.Fatalf("node %s: %v", node.Name, err)
		}
		out[node.Name] = ref.String()
	}
	return out
}

// attachByHand puts an identity on a resource as an operator would.
func attachByHand(t *testing.T, resource string, identity model.Identity) {
	t.Helper()
	ref, err := compute.ParseRef(resource)
	if err != nil {
		t.Fatal(err)
	}
	attach := lab.Sim.Attach
	if ref.Kind == compute.VirtualMachine {
		attach = lab.Sim.AttachToVM
	}
	if err := attach(t.Context(), resource, identity.ID); err != nil {
		t.Fatal(err)
	}
}

// journalEnd returns the number of the latest request to Azure.
func journalEnd(t *testing.T) uint64 {
	t.Helper()
	entries, err := lab.Sim.Journal(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].Seq
}

// requests returns what Azure was asked after an earlier request, all of which
// must be what Azure offers.
func requests(t *testing.T, after uint64) []journal.Entry {
	t.Helper()
	entries, err := lab.Sim.Journal(t.Context(), after)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Unexpected {
			t.Errorf("Azure does not know this request: %s", entry)
		}
	}
	return entries
}

// wantAsked checks that the real metadata service was asked for a token from the
// address, with the parameters as the program gave them.
func wantAsked(t *testing.T, after uint64, from, query string) {
	t.Helper()
	asked, err := url.Parse(tokenURL + query)
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range requests(t, after) {
		got, err := url.ParseQuery(request.Query)
		if err == nil && request.Surface == journal.IMDS && request.Remote.String() == from && cmp.Equal(asked.Query(), got) {
			return
		}
	}
	t.Errorf("the metadata service was not asked from %s with %q, but: %v", from, query, requests(t, after))
}

// secretValue is what newVault puts into its secret.
const secretValue = "a value that only the lab knows"

// newVault makes a key vault whose secret "demo" the identity may read, and
// returns its address.
func newVault(t *testing.T, namespace string, identity model.Identity) string {
	t.Helper()
	vault := model.Vault{
		ID:      identityGroup + "/providers/Microsoft.KeyVault/vaults/" + namespace,
		Secrets: []model.VaultSecret{{Name: "demo", Value: secretValue}},
	}
	if _, err := lab.Sim.AddVault(t.Context(), vault); err != nil {
		t.Fatal(err)
	}
	role := model.RoleAssignment{Principal: identity.PrincipalID, Role: "Key Vault Secrets User", Scope: vault.ID}
	if _, err := lab.Sim.AssignRole(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	return "https://" + namespace + ".vault.azure.net"
}

// claims are the parts of a token that tell whose it is, and for what.
type claims struct {
	Audience string `json:"aud"`
	ClientID string `json:"appid"`
	ObjectID string `json:"oid"`
}

// wantTokenOf checks that a token for the vault is the identity's. Whether its
// signature is right is the key vault's to say, in the tests that read a secret.
func wantTokenOf(t *testing.T, want model.Identity, token string) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no token", token)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var got claims
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(claims{Audience: "https://vault.azure.net", ClientID: want.ClientID, ObjectID: want.PrincipalID}, got); diff != "" {
		t.Errorf("the token is not that of %s (-want +got):\n%s", want.ID, diff)
	}
}

// wantToken asks the metadata address from a pod by curl, and checks the token.
func wantToken(t *testing.T, pod *corev1.Pod, want model.Identity, query string) {
	t.Helper()
	status, body := curl(t, pod, tokenURL+query, "Metadata: true")
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != "200" {
		t.Fatalf("asking for a token in pod %s: status %s, %v: %s", pod.Name, status, err, body)
	}
	wantTokenOf(t, want, answer.Token)
}

// wantRefusal checks that a pod is told no, with the status and words.
func wantRefusal(t *testing.T, pod *corev1.Pod, query string, status int, words string) {
	t.Helper()
	got, body := curl(t, pod, tokenURL+query, "Metadata: true")
	if got != strconv.Itoa(status) || !strings.Contains(body, words) || strings.Contains(body, "access_token") {
		t.Errorf("pod %s got status %s, want %d with %q: %s", pod.Name, got, status, words, body)
	}
}
