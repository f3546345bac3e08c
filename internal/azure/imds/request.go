// Package imds is the dialect of the Azure instance metadata service: what a
// token request and its answer look like on the wire, and a client that speaks
// it.
//
// Parsing and encoding are pure and serve both sides, so that what the agent
// answers is what the service would have answered. The package must not know
// pods or identities of Kubernetes, nor decide who gets a token.
package imds

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// TokenPath is the canonical path of the token route.
const TokenPath = "/metadata/identity/oauth2/token"

// maxResource bounds the resource of a request, in bytes. The longest real ones
// are URLs of a few dozen characters.
const maxResource = 1024

// TokenRequest is a well-formed token request. Resource is set; the three others
// name an identity and are zero where the caller left it open.
type TokenRequest struct {
	// Resource is the audience of the token, as the caller spelled it.
	Resource string
	// ClientID and ObjectID are as the caller spelled them; GUIDs compare
	// without case.
	ClientID, ObjectID string
	// ResourceID comes from msi_res_id or mi_res_id.
	ResourceID armid.ID
	// BypassCache asks for a token that nobody has kept.
	BypassCache bool
}

// Unspecified reports whether the caller asks for no identity in particular.
func (r TokenRequest) Unspecified() bool {
	return r.ClientID == "" && r.ObjectID == "" && r.ResourceID.IsZero()
}

// RequestError says why the metadata service would refuse a request with 400.
type RequestError struct {
	// Description is for the caller.
	Description string
	// Forwarded says that the request came through a proxy.
	Forwarded bool
}

// Error returns the description.
func (e *RequestError) Error() string { return e.Description }

func refuse(format string, args ...any) error {
	return &RequestError{Description: fmt.Sprintf(format, args...)}
}

// CheckHeaders refuses a request that carries X-Forwarded-For and, if metadata
// is true, one without the header "Metadata: true" (the value in any case). The
// service does so for every path; it keeps a pod's HTTP proxy, or a page that a
// server is tricked to fetch, from getting a token. Errors are [*RequestError]s.
func CheckHeaders(header http.Header, metadata bool) error {
	if metadata && !saysTrue(header.Values("Metadata")) {
		return &RequestError{Description: "Required metadata header not specified"}
	}
	if len(header.Values("X-Forwarded-For")) > 0 {
		return &RequestError{Description: "Request contains the header X-Forwarded-For, which is not allowed", Forwarded: true}
	}
	return nil
}

func saysTrue(values []string) bool {
	for _, value := range values {
		if !strings.EqualFold(strings.TrimSpace(value), "true") {
			return false
		}
	}
	return len(values) > 0
}

// ParseTokenQuery reads the query of a token request. Names compare without
// case, and none may stand twice: of two values nobody could say which one
// counts. Unknown names are left alone, api-version is optional, and an empty
// value is an absent one. Errors are [*RequestError]s.
func ParseTokenQuery(rawQuery string) (TokenRequest, error) {
	var read variables
	if err := read.parse(rawQuery); err != nil {
		return TokenRequest{}, err
	}
	out := TokenRequest{Resource: read.get("resource"), ClientID: read.get("client_id"), ObjectID: read.get("object_id")}
	out.BypassCache = strings.EqualFold(read.get("bypass_cache"), "true")
	switch {
	case out.Resource == "":
		return TokenRequest{}, refuse("Required query variable 'resource' is missing")
	case len(out.Resource) > maxResource:
		return TokenRequest{}, refuse("Query variable 'resource' is longer than %d bytes", maxResource)
	}
	var err error
	if out.ResourceID, err = resourceID(read.get("msi_res_id"), read.get("mi_res_id")); err != nil {
		return TokenRequest{}, err
	}
	return out, nil
}

// RebuildQuery writes a query anew, so that every reader of it finds the names
// and values, in their order, that were understood here: each is unescaped and
// escaped again. What cannot be understood is a [*RequestError].
func RebuildQuery(rawQuery string) (string, error) {
	var out strings.Builder
	err := eachVariable(rawQuery, func(name, value string, valued bool) error {
		if out.Len() > 0 {
			out.WriteByte('&')
		}
		out.WriteString(url.QueryEscape(name))
		if valued {
			out.WriteString("=" + url.QueryEscape(value))
		}
		return nil
	})
	return out.String(), err
}

// eachVariable calls do with each variable of a query, unescaped; valued says
// whether there is a value, which may be empty.
func eachVariable(rawQuery string, do func(name, value string, valued bool) error) error {
	for part := range strings.SplitSeq(rawQuery, "&") {
		if part == "" {
			continue
		}
		name, value, valued := strings.Cut(part, "=")
		name, err := unescape(name)
		if err != nil {
			return err
		}
		if value, err = unescape(value); err != nil {
			return err
		}
		if err := do(name, value, valued); err != nil {
			return err
		}
	}
	return nil
}

func unescape(s string) (string, error) {
	if strings.Contains(s, ";") {
		return "", refuse("Query string cannot be parsed: a semicolon must be escaped")
	}
	out, err := url.QueryUnescape(s)
	if err != nil {
		return "", refuse("Query string cannot be parsed: %v", err)
	}
	return out, nil
}

// maxVariables bounds how many variables a query may have; the service knows
// seven.
const maxVariables = 32

// variables are those of a query, names in lower case. They are few, and on the
// stack: this is read for each request.
type variables struct {
	all   [maxVariables]variable
	count int
}

type variable struct{ name, value string }

func (v *variables) get(name string) string {
	for i := range v.count {
		if v.all[i].name == name {
			return v.all[i].value
		}
	}
	return ""
}

func (v *variables) parse(rawQuery string) error {
	return eachVariable(rawQuery, func(name, value string, _ bool) error { return v.add(strings.ToLower(name), value) })
}

func (v *variables) add(name, value string) error {
	if v.count == maxVariables {
		return refuse("Query string holds more than %d variables", maxVariables)
	}
	for i := range v.count {
		if v.all[i].name == name {
			return refuse("Query variable %q is given more than once", name)
		}
	}
	v.all[v.count] = variable{name, value}
	v.count++
	return nil
}

func resourceID(msi, mi string) (armid.ID, error) {
	a, err := optionalID("msi_res_id", msi)
	if err != nil {
		return armid.ID{}, err
	}
	b, err := optionalID("mi_res_id", mi)
	switch {
	case err != nil:
		return armid.ID{}, err
	case a.IsZero():
		return b, nil
	case !b.IsZero() && a != b:
		return armid.ID{}, refuse("Query variables 'msi_res_id' and 'mi_res_id' name different identities")
	}
	return a, nil
}

func optionalID(name, value string) (armid.ID, error) {
	if value == "" {
		return armid.ID{}, nil
	}
	id, err := armid.ParseUserAssigned(value)
	if err != nil {
		return armid.ID{}, refuse("Query variable '%s' is not the ID of a managed identity: %v", name, err)
	}
	return id, nil
}
