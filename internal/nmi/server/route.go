package server

import (
	"slices"
	"strings"
)

// route is what a path asks for.
type route int

const (
	// malformed paths are those that two readers could read differently.
	malformed route = iota
	// notServed paths are refused for everybody.
	notServed
	// token is the token route.
	token
	// host is the token route for programs of the node.
	host
	// instance is /metadata/instance and what is below it.
	instance
	// instanceLike is instance in another case. The real service might take it
	// for instance, so it is blocked with it, and otherwise not served.
	instanceLike
	// listed is what the install gives to pods beside.
	listed
	// exceptional paths are for pods with an exception only.
	exceptional
)

const (
	tokenRest   = "identity/oauth2/token" //nolint:gosec // a path, no credential
	metadataDir = "/metadata/"
)

// Listable returns the names below /metadata that an install can give to pods.
func Listable() []string { return []string{"attested", "scheduledevents"} }

// routeOf sorts the path of a request as it stands on the wire, and returns the
// canonical path to forward. The list of what is served is exhaustive:
//
//	/host/token                          host
//	/metadata/identity/oauth2/token      token
//	/metadata/identity, /metadata/identity/… not served, for anybody
//	/metadata/instance[/…]               instance
//	/metadata/name[/…], name among list  listed
//	/metadata/anything[/…]               exceptional
//	all else                             not served
//
// "metadata" may stand in any case, and one slash at the end; the rest must match
// to the letter. Escapes, backslashes, semicolons and the like, empty segments
// and dot segments are malformed: a service further on could read them as
// something else than what was checked here.
func routeOf(path string, list []string) (route, string) {
	if path == metadataDir+tokenRest { // nearly always
		return token, path
	}
	segments, ok := split(path)
	if !ok {
		return malformed, ""
	}
	rest := ""
	if len(segments) > 1 {
		rest = strings.Join(segments[1:], "/")
	}
	switch {
	case rest == "token" && segments[0] == "host":
		return host, ""
	case rest == "" || !strings.EqualFold(segments[0], "metadata"):
		return notServed, ""
	case rest == tokenRest:
		return token, metadataDir + rest
	}
	kind := metadataRoute(segments[1], list)
	if kind == notServed || kind == instanceLike {
		return kind, ""
	}
	return kind, metadataDir + rest
}

func metadataRoute(name string, list []string) route {
	switch {
	case strings.EqualFold(name, "identity"):
		return notServed
	case name == "instance":
		return instance
	case strings.EqualFold(name, "instance"):
		return instanceLike
	case slices.Contains(list, name):
		return listed
	}
	return exceptional
}

// split cuts a path into its segments, without one slash at the end.
func split(path string) ([]string, bool) {
	if path == "/" {
		return nil, true
	}
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, false
	}
	segments := strings.Split(strings.TrimSuffix(rest, "/"), "/")
	for _, segment := range segments {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, forbidden) {
			return nil, false
		}
	}
	return segments, true
}

// forbidden reports what a path must not hold: all but the characters that RFC
// 3986 calls unreserved, which nobody escapes or cuts at. No path of the service
// has others.
func forbidden(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("-._~", r)
}
