package e2e_test

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// wantAttached checks the scale set of a node in the simulated Azure.
func wantAttached(t *testing.T, node *world.Node, identity model.Identity, want bool) {
	t.Helper()
	if got := attached(t, node, identity); got != want {
		t.Errorf("identity %s on the scale set of %s: %v, want %v", identity.ID, node.Name, got, want)
	}
}

func attached(t *testing.T, node *world.Node, identity model.Identity) bool {
	t.Helper()
	doc, err := shared.Sim.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, scaleSet := range doc.ScaleSets {
		if strings.EqualFold(scaleSet.ID, node.ScaleSetID()) {
			return slices.ContainsFunc(scaleSet.UserAssigned, func(id string) bool { return strings.EqualFold(id, identity.ID) })
		}
	}
	t.Fatalf("there is no scale set %s", node.ScaleSetID())
	return false
}

// awaitDetached waits for MIC's own word that the identity is gone, then checks
// Azure's.
func awaitDetached(t *testing.T, node *world.Node, identity model.Identity) {
	t.Helper()
	holds := func(ids []string) bool { return slices.Contains(ids, strings.ToLower(identity.ID)) }
	awaitObject(t, &v1.AzureIdentityAttachmentList{}, "an attachment without "+identity.ID, func(a *v1.AzureIdentityAttachment) bool {
		if !strings.EqualFold(a.Spec.ResourceID, node.ScaleSetID()) {
			return false
		}
		owned := slices.ContainsFunc(a.Spec.Owned, func(o v1.OwnedIdentity) bool { return o.ResourceID == strings.ToLower(identity.ID) })
		return !owned && !holds(a.Status.Present)
	})
	wantAttached(t, node, identity, false)
}
