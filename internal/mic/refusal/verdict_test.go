package refusal_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/refusal"
)

const resourceID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"

func object() *v1.AzureIdentity {
	return &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "demo", UID: "u", Generation: 3},
		Spec:       v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "AAAA"},
	}
}

// record is of a resource that refuses or estranges identities, by the last name
// of their IDs.
func record(resource string, refused map[string]string, strange map[string]string) *v1.AzureIdentityAttachment {
	out := &v1.AzureIdentityAttachment{Spec: v1.AzureIdentityAttachmentSpec{ResourceID: resource}}
	base := strings.ToLower(strings.TrimSuffix(resourceID, "Demo"))
	for name, edition := range refused {
		out.Status.Refused = append(out.Status.Refused, v1.RefusedIdentity{ResourceID: base + name, Reason: v1.ReasonIdentityRefused, Message: "ARM's words", Identities: []string{"other@1", edition}})
	}
	for name, clientID := range strange {
		out.Status.Estranged = append(out.Status.Estranged, v1.EstrangedIdentity{ResourceID: base + name, ClientID: clientID})
	}
	return out
}

func TestOf(t *testing.T) {
	type all = []*v1.AzureIdentityAttachment
	now := map[string]string{"demo": "u@3"}
	for name, test := range map[string]struct {
		edit    func(*v1.AzureIdentity)
		records all
		reason  v1.Reason
		words   []string
	}{
		"nothing":                       {},
		"another identity's trouble":    {records: all{record("r", map[string]string{"x": "u@3"}, map[string]string{"y": ""})}},
		"refused":                       {records: all{record("r", now, nil)}, reason: v1.ReasonIdentityRefused, words: []string{"on r: ", "ARM's words"}},
		"refused before an edit":        {records: all{record("r", map[string]string{"demo": "u@2"}, nil)}},
		"refused, the one before it":    {records: all{record("r", map[string]string{"demo": "v@3"}, nil)}},
		"refused on several":            {records: all{record("z", now, nil), record("a", now, nil), record("m", now, nil)}, reason: v1.ReasonIdentityRefused, words: []string{"on a: ", "(and 2 more virtual machines or scale sets)"}},
		"without a principal":           {records: all{record("r", nil, map[string]string{"demo": ""})}, reason: v1.ReasonIdentityRecreated, words: []string{"on r: ", "detach it there by hand"}},
		"another client ID":             {records: all{record("r", nil, map[string]string{"demo": "bbbb"})}, reason: v1.ReasonClientIDMismatch, words: []string{"bbbb", "not aaaa", "az identity show"}},
		"the client ID in another case": {records: all{record("r", nil, map[string]string{"demo": "aAaA"})}},
		"refused goes first":            {records: all{record("a", nil, map[string]string{"demo": ""}), record("z", now, nil)}, reason: v1.ReasonIdentityRefused, words: []string{"on z: ", "(and 1 more"}},
		"cannot be read":                {edit: func(i *v1.AzureIdentity) { i.Spec.ResourceID = "odd" }, records: all{record("r", now, nil)}},
		"became federated":              {edit: func(i *v1.AzureIdentity) { i.Spec.Federation = &v1.Federation{} }, records: all{record("r", now, nil)}},
	} {
		t.Run(name, func(t *testing.T) {
			identity := object()
			if test.edit != nil {
				test.edit(identity)
			}
			got := refusal.Of(identity, test.records)
			if test.reason == "" {
				if got != nil {
					t.Errorf("got %+v", got)
				}
				return
			}
			if got == nil || got.Reason != test.reason {
				t.Fatalf("got %+v, want %s", got, test.reason)
			}
			for _, word := range test.words {
				if !strings.Contains(got.Message, word) {
					t.Errorf("%q does not say %q", got.Message, word)
				}
			}
		})
	}
}

// What the edition is made of decides whether an edit ends a refusal.
func TestEdition(t *testing.T) {
	i := object()
	if got := kube.Edition(i); got != "u@3" {
		t.Errorf("got %s", got)
	}
}
