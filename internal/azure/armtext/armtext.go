// Package armtext reads what Azure Resource Manager (ARM) says in the message of
// an error and nowhere else: which identities it is about, what it wraps, and
// which right is missing where.
//
// It is pure. A message is text for people, in any quoting and case, and at times
// an error inside an error: what is not understood is left out, and nothing is
// ever read into it. It must not decide what a failure is.
package armtext

import (
	"regexp"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Named returns those of the identities that the message names, and whether it
// names others.
func Named(message string, identities []armid.ID) (named []armid.ID, others bool) {
	text := unquoted(message)
	for _, id := range identities {
		if mentions(text, id.String()) {
			named = append(named, id)
		}
	}
	for _, written := range identityPattern().FindAllString(text, -1) {
		id, err := armid.ParseUserAssigned(written)
		others = others || err == nil && !slices.Contains(identities, id)
	}
	return named, others
}

func identityPattern() *regexp.Regexp {
	return regexp.MustCompile(`/subscriptions/[a-z0-9-]+/resourcegroups/[a-z0-9._()-]+/providers/microsoft\.managedidentity/userassignedidentities/[a-z0-9_-]+`)
}

// unquoted is the message in lower case, with the slashes that JSON or a URL has
// hidden.
func unquoted(message string) string {
	return strings.NewReplacer(`\/`, "/", "%2f", "/").Replace(strings.ToLower(message))
}

// mentions reports whether the text holds the ID, and not only a longer one
// that begins with it. An identity's name holds letters, digits, - and _.
func mentions(text, id string) bool {
	for rest := text; ; {
		_, after, found := strings.Cut(rest, id)
		if !found {
			return false
		}
		if after == "" || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_", rune(after[0])) {
			return true
		}
		rest = after
	}
}

// Cause is what an error wraps, where it is of another kind than its code says.
type Cause int

// The causes.
const (
	// None: nothing is wrapped, or something of the kind that the code says.
	None Cause = iota
	// Throttled: another of Azure's services asked ARM to wait.
	Throttled
	// Down: another of Azure's services failed.
	Down
)

// CauseOf reads the status or code of the answer that a message wraps, such as
// Status: 'TooManyRequests'.
func CauseOf(message string) Cause {
	for _, found := range causePattern().FindAllStringSubmatch(unquoted(message), -1) {
		switch found[1] {
		case "toomanyrequests", "429", "requestthrottled", "throttled":
			return Throttled
		case "internalservererror", "500", "badgateway", "502", "serviceunavailable", "503", "gatewaytimeout", "504", "requesttimeout", "408":
			return Down
		}
	}
	return None
}

func causePattern() *regexp.Regexp {
	return regexp.MustCompile(`\b(?:status ?code|status|code)\b[^a-z0-9]{1,6}([a-z0-9]+)`)
}

// Missing returns the action that ARM says the client may not perform, and the
// scopes; empty if the message does not say.
func Missing(message string) (action string, scopes []string) {
	found := missingPattern().FindStringSubmatch(message)
	if found == nil {
		return "", nil
	}
	for scope := range strings.SplitSeq(found[2], ",") {
		if scope = strings.TrimSpace(scope); scope != "" {
			scopes = append(scopes, scope)
		}
	}
	return found[1], scopes
}

func missingPattern() *regexp.Regexp {
	return regexp.MustCompile(`(?i)does not have (?:permission|authorization) to perform action(?:\(s\))?\s+[^\w\s]?([\w./*-]+)[^\w\s]?\s+(?:on|over)\s+(?:the\s+)?(?:linked\s+)?scope(?:\(s\))?\s+[^\w\s/]?(/[^'"\s;]*)`)
}

// Role returns the built-in role of Azure that grants an action with the least
// beside it; empty if it is none that the controller needs.
func Role(action string) string {
	action = strings.ToLower(action)
	switch {
	case strings.HasPrefix(action, "microsoft.compute/virtualmachine"):
		return "Virtual Machine Contributor"
	case strings.HasPrefix(action, "microsoft.managedidentity/userassignedidentities/"):
		return "Managed Identity Operator"
	case strings.HasPrefix(action, "microsoft.network/"):
		return "Network Contributor"
	}
	return ""
}

// OfIdentities reports whether what is missing is, or may be, the right to
// assign identities.
func OfIdentities(message string) bool {
	action, _ := Missing(message)
	return action == "" || strings.HasPrefix(strings.ToLower(action), "microsoft.managedidentity/")
}
