package server

import (
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
	// instance is /metadata/instance and what is below it.
	instance
	// instanceLike is instance in another case. The real service might take it
	// for instance, so it is blocked with it, and otherwise not served.
	instanceLike
	// exceptional paths are for pods with an exception only.
	exceptional
)

const (
	tokenRest   = "identity/oauth2/token" //nolint:gosec // a path, no credential
	metadataDir = "/metadata/"
)

// routeOf sorts the path of a request as it stands on the wire, and returns the
// canonical path to forward. The list of what is served is exhaustive:
//
//	/metadata/identity/oauth2/token      token
//	/metadata/identity, /metadata/identity/… not served, for anybody
//	/metadata/instance[/…]               instance
//	/metadata/anything[/…]               exceptional
//	all else                             not served
//
// "metadata" may stand in any case and one slash at the end; the rest must match
// to the letter. Escapes, backslashes, semicolons and the like, empty segments
// and dot segments are malformed: a service further on could read them as
// something else than what was checked here.
func routeOf(path string) (route, string) {
	segments, ok := split(path)
	if !ok {
		return malformed, ""
	}
	if len(segments) < 2 || !strings.EqualFold(segments[0], "metadata") {
		return notServed, ""
	}
	rest := strings.Join(segments[1:], "/")
	switch second := segments[1]; {
	case rest == tokenRest:
		return token, metadataDir + rest
	case strings.EqualFold(second, "identity"):
		return notServed, ""
	case second == "instance":
		return instance, metadataDir + rest
	case strings.EqualFold(second, "instance"):
		return instanceLike, ""
	}
	return exceptional, metadataDir + rest
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
