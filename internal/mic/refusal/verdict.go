package refusal

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// Verdict is what is said of an AzureIdentity.
type Verdict struct {
	Reason  v1.Reason
	Message string
}

// Of returns what is wrong with an AzureIdentity by the records of the resources
// that its pods' nodes are of; nil if nothing is:
//
//	a record…                                        →
//	refuses the identity, as it is written now       the reason there, and Azure's words
//	refuses it as it was written before an edit      nothing: it has not been tried since
//	shows it without a principal                     IdentityRecreated
//	shows it with another client ID                  ClientIDMismatch
//
// Of several, a refusal goes before the others, then the resource that comes
// first by its ARM ID; the message says how many there are.
func Of(object *v1.AzureIdentity, records []*v1.AzureIdentityAttachment) *Verdict {
	principal, err := identity.FromObject(object)
	if err != nil || !principal.Attached() {
		return nil
	}
	records = slices.SortedFunc(slices.Values(records), func(a, b *v1.AzureIdentityAttachment) int {
		return cmp.Compare(a.Spec.ResourceID, b.Spec.ResourceID)
	})
	var refused, strange []Verdict
	for _, record := range records {
		if verdict := refusedBy(record, principal.ResourceID, kube.Edition(object)); verdict != nil {
			refused = append(refused, *verdict)
		} else if verdict := strangeTo(record, principal); verdict != nil {
			strange = append(strange, *verdict)
		}
	}
	all := slices.Concat(refused, strange)
	if len(all) == 0 {
		return nil
	}
	if more := len(all) - 1; more > 0 {
		all[0].Message += fmt.Sprintf(" (and %d more virtual machines or scale sets)", more)
	}
	return &all[0]
}

func refusedBy(record *v1.AzureIdentityAttachment, id armid.ID, edition string) *Verdict {
	for _, refused := range record.Status.Refused {
		if refused.ResourceID == id.String() && slices.Contains(refused.Identities, edition) {
			return &Verdict{refused.Reason, fmt.Sprintf("on %s: %s", record.Spec.ResourceID, refused.Message)}
		}
	}
	return nil
}

func strangeTo(record *v1.AzureIdentityAttachment, principal identity.Identity) *Verdict {
	for _, strange := range record.Status.Estranged {
		switch {
		case strange.ResourceID != principal.ResourceID.String() || principal.ClientID.Matches(strange.ClientID):
		case strange.ClientID == "":
			return &Verdict{v1.ReasonIdentityRecreated, fmt.Sprintf("on %s: the identity was deleted and created again under its name, and the resource carries the former one: if the controller does not attach it anew by itself, check clientID and detach it there by hand", record.Spec.ResourceID)}
		default:
			return &Verdict{v1.ReasonClientIDMismatch, fmt.Sprintf("on %s: Azure shows the client ID %s for this identity, and not %s: set clientID to what az identity show --query clientId says", record.Spec.ResourceID, strings.ToLower(strange.ClientID), principal.ClientID)}
		}
	}
	return nil
}
