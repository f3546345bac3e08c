package wire

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// harmless returns the query names whose values the journal may hold. All other
// values are masked: a lost client might put a secret anywhere.
func harmless() []string {
	return []string{
		"api-version", "resource", "client_id", "object_id", "principal_id", "msi_res_id", "mi_res_id", "bypass_cache",
		"format", "authorization_endpoint", "appid", "$expand", "outContentType", "restype", "comp", "maxresults",
	}
}

func maskQuery(raw string) string {
	if raw == "" {
		return ""
	}
	known := harmless()
	pairs := strings.Split(raw, "&")
	for i, pair := range pairs {
		name, _, valued := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(name)
		if valued && (err != nil || !slices.Contains(known, plain)) {
			pairs[i] = name + "=***"
		}
	}
	return strings.Join(pairs, "&")
}

// Query reads the query of a call. A name that is not among allowed, or comes
// twice, is unexpected.
func Query(call *Call, allowed ...string) (url.Values, error) {
	values, err := url.ParseQuery(call.URL.RawQuery)
	if err != nil {
		return nil, Unexpected(http.StatusBadRequest, "InvalidQuery", "The query string cannot be parsed.")
	}
	for name, all := range values {
		if !slices.Contains(allowed, name) {
			return nil, Unexpected(http.StatusBadRequest, "InvalidQueryParameter", "The query parameter '%s' is not known to this operation.", name)
		}
		if len(all) > 1 {
			return nil, Unexpected(http.StatusBadRequest, "InvalidQueryParameter", "The query parameter '%s' is given more than once.", name)
		}
	}
	return values, nil
}

// Bearer returns the token of the Authorization header, or false.
func Bearer(r *http.Request) (string, bool) {
	scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return value, ok && strings.EqualFold(scheme, "Bearer") && value != ""
}
