// Package entra gets tokens for service principals from the Microsoft identity
// platform, by a secret or a certificate, through the Azure SDK.
//
// It sends a credential to the authorities that the install allows and to
// nothing else, over https, without following redirects. It must not keep
// tokens, read Secrets, or know pods.
package entra

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
)

// EnvironmentFileVariable names the file that describes a cloud of one's own.
const EnvironmentFileVariable = "AZURE_ENVIRONMENT_FILEPATH"

// KnownHosts returns the authorities of Microsoft's clouds, the public one's
// first.
func KnownHosts() []string {
	return []string{"login.microsoftonline.com", "login.microsoftonline.us", "login.chinacloudapi.cn", "login.partner.microsoftonline.cn"}
}

// Authority is a place where credentials may go: https, one host, at times a
// port and a path. The zero Authority is none.
type Authority struct {
	host string // folded; without the port 443
	path string // without slashes at its ends
}

// String returns the authority as a URL that ends in a slash.
func (a Authority) String() string {
	if a.path == "" {
		return "https://" + a.host + "/"
	}
	return "https://" + a.host + "/" + a.path + "/"
}

// Authorities is an install's list. Use [ParseAuthorities].
type Authorities struct {
	list []Authority
}

// ParseAuthorities reads a list of host names, or of https URLs where there is a
// path. The first is for identities that name none.
func ParseAuthorities(texts []string) (Authorities, error) {
	var out Authorities
	for _, text := range texts {
		if !strings.Contains(text, "://") {
			text = "https://" + text
		}
		authority, err := parseAuthority(text)
		if err != nil {
			return Authorities{}, err
		}
		out.list = append(out.list, authority)
	}
	if len(out.list) == 0 {
		return Authorities{}, fmt.Errorf("no authority is given: want at least one, as %s", KnownHosts()[0])
	}
	return out, nil
}

func parseAuthority(text string) (Authority, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return Authority{}, fmt.Errorf("authority %q is not a URL", text)
	case u.Scheme != "https":
		return Authority{}, fmt.Errorf("authority %q must begin https://", text)
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "", u.Opaque != "", u.Host == "":
		return Authority{}, fmt.Errorf("authority %q must be https:// and a host, with a path at most", text)
	case u.RawPath != "" || strings.Contains(u.Path, "//") || strings.ContainsFunc(u.Host+u.Path, foreign):
		return Authority{}, fmt.Errorf("authority %q holds characters that do not belong there", text)
	case slices.Contains(strings.Split(u.Path, "/"), "..") || slices.Contains(strings.Split(u.Path, "/"), "."):
		return Authority{}, fmt.Errorf("authority %q must not have dots as a part of its path", text)
	}
	return Authority{host: foldHost(u.Host), path: strings.Trim(u.Path, "/")}, nil
}

// foreign reports what is in no authority: all but letters and digits of ASCII,
// and what separates them.
func foreign(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("-._/:[]", r)
}

func foldHost(host string) string {
	host = strings.ToLower(host)
	if name, port, err := net.SplitHostPort(host); err == nil && port == "443" {
		return name
	}
	return host
}

// ForbiddenError says that a credential would have gone where the install does
// not let it go.
type ForbiddenError struct {
	Endpoint string
	Allowed  []string
	Err      error // what is wrong with the endpoint itself; nil if it is well formed
}

// Error names the endpoint, and what is allowed.
func (e *ForbiddenError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("credentials may not go to %s: this install allows %s", e.Endpoint, strings.Join(e.Allowed, ", "))
}

// Unwrap returns what is wrong with the endpoint.
func (e *ForbiddenError) Unwrap() error { return e.Err }

// Find returns the authority that an identity's adEndpoint names; empty names
// the first. What is returned is the list's own, whatever the spelling of the
// endpoint. Every error is a [*ForbiddenError].
func (a Authorities) Find(endpoint string) (Authority, error) {
	if endpoint == "" && len(a.list) > 0 {
		return a.list[0], nil
	}
	asked, err := parseAuthority(endpoint)
	if err == nil {
		if i := slices.Index(a.list, asked); i >= 0 {
			return a.list[i], nil
		}
	}
	return Authority{}, &ForbiddenError{Endpoint: endpoint, Allowed: a.names(), Err: err}
}

func (a Authorities) names() []string {
	out := make([]string, len(a.list))
	for i, authority := range a.list {
		out[i] = authority.String()
	}
	return out
}

// allows reports whether a request may go to the URL.
func (a Authorities) allows(u *url.URL) bool {
	return u.Scheme == "https" && u.User == nil &&
		slices.ContainsFunc(a.list, func(authority Authority) bool { return authority.host == foldHost(u.Host) })
}

// ReadEnvironment returns the authority of a cloud of one's own from the file
// that describes it, with the keys of the Azure Stack tools.
func ReadEnvironment(file string) (string, error) {
	content, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return "", fmt.Errorf("reading the cloud's description: %w", err)
	}
	var environment struct {
		ActiveDirectoryEndpoint string `json:"activeDirectoryEndpoint"`
	}
	if err := json.Unmarshal(content, &environment); err != nil {
		return "", fmt.Errorf("reading the cloud's description %s: %w", file, err)
	}
	if environment.ActiveDirectoryEndpoint == "" {
		return "", fmt.Errorf("the cloud's description %s has no activeDirectoryEndpoint", file)
	}
	return environment.ActiveDirectoryEndpoint, nil
}
