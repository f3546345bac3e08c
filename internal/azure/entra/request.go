package entra

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Request is what a token is asked for with.
type Request struct {
	Authority Authority
	TenantID  string
	ClientID  string
	// Resource is the audience, as the caller spelled it.
	Resource string
	// Credential is the principal's secret or certificate.
	Credential Credential
}

// Scope returns what version 2.0 of the platform calls a resource: "/.default"
// is appended to it as it is, so that a slash at its end stays. A scope with
// white space would be several.
func Scope(resource string) (string, error) {
	switch {
	case resource == "":
		return "", errors.New("the resource is empty")
	case strings.ContainsFunc(resource, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return "", fmt.Errorf("the resource %q holds white space", resource)
	}
	return resource + "/.default", nil
}

// CheckTenant refuses what cannot name a tenant: a GUID or a domain can, and
// nothing that changes the path of a URL.
func CheckTenant(tenant string) error {
	valid := tenant != "" && !strings.HasPrefix(tenant, ".") && !strings.ContainsFunc(tenant, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.'
	})
	if !valid {
		return fmt.Errorf("tenantID %q is not the ID or the domain of a tenant", tenant)
	}
	return nil
}
