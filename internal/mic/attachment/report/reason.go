package report

import (
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Explain returns the Reason of a failure and words that say what to do.
func Explain(err error) (v1.Reason, string) {
	var (
		notFound     *armclient.NotFoundError
		deleting     *armclient.DeletingError
		throttled    *armclient.ThrottledError
		conflict     *armclient.ConflictError
		precondition *armclient.PreconditionFailedError
		bad          *armclient.BadIdentitiesError
		denied       *armclient.DeniedError
	)
	switch {
	case errors.As(err, &bad):
		return v1.ReasonIdentityRefused, remedyOfRefusal(bad)
	case errors.As(err, &denied):
		return v1.ReasonPermissionDenied, remedyOfDenial(denied)
	case errors.As(err, &notFound):
		return v1.ReasonResourceNotFound, fmt.Sprintf("%v: check the node's providerID", notFound)
	case errors.As(err, &deleting):
		return v1.ReasonResourceDeleting, deleting.Error()
	case errors.As(err, &throttled):
		return v1.ReasonThrottled, "ARM asks to wait; the controller tries again by itself (ARM says: " + throttled.Message + ")"
	case errors.As(err, &conflict):
		return v1.ReasonConflict, conflict.Error() + "; the controller tries again by itself"
	case errors.As(err, &precondition):
		return v1.ReasonConflict, precondition.Error() + "; the controller tries again by itself"
	}
	return v1.ReasonARMUnavailable, fmt.Sprintf("%v; the controller tries again by itself", err)
}

// recreatedMessage is said of an identity on the resource that has no principal.
func recreatedMessage(id armid.ID, resource string, mend bool) string {
	const what = "the identity was deleted and created again under its name, and the resource still carries the former one, for which nobody gets a token; "
	if mend {
		return what + "the controller detaches it and attaches it anew"
	}
	return what + "the controller did not attach it, or tried in vain, and leaves it alone: check the clientID of the AzureIdentity, and detach " +
		id.String() + " from " + resource + " (az vmss identity remove, az vm identity remove): the controller attaches it again"
}

func remedyOfDenial(denied *armclient.DeniedError) string {
	role := "a role that grants that"
	if denied.Role != "" {
		role = "the role " + denied.Role
	}
	return fmt.Sprintf("the controller's identity may not %s on %s: give it %s, there or on the resource group of it (ARM says: %s)", denied.Action, denied.Scope, role, short(denied.Message))
}

func remedyOfRefusal(bad *armclient.BadIdentitiesError) string {
	if bad.Code == "LinkedAuthorizationFailed" {
		return "the controller's identity may not assign this identity: give it the role Managed Identity Operator on it or on its resource group (ARM says: " + short(bad.Message) + ")"
	}
	return "Azure refuses to attach this identity: check with az identity show that it exists (ARM says: " + short(bad.Message) + ")"
}

// short keeps the begin of ARM's words: a message that names 150 identities
// would not fit into an Event.
func short(words string) string {
	const most = 600
	if len(words) <= most {
		return words
	}
	return strings.ToValidUTF8(words[:most], "") + "…"
}

// RetryAfter returns how long a failure asks to wait; zero if it does not say.
func RetryAfter(err error) time.Duration {
	var throttled *armclient.ThrottledError
	var unavailable *armclient.UnavailableError
	switch {
	case errors.As(err, &throttled):
		return throttled.After
	case errors.As(err, &unavailable):
		return unavailable.After
	}
	return 0
}
