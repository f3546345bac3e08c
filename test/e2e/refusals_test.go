package e2e_test

import (
	"net/http"
	"strings"
	"testing"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

func TestRefusals(t *testing.T) {
	node := shared.Nodes[0]
	noLeak(t, node)
	mine, others := newIdentity(t, "-mine"), newIdentity(t, "-others")
	bind(t, "refusals-mine", mine, "refusals-mine")
	bind(t, "refusals-others", others, "refusals-others")
	bound := runPod(t, node, "refusals-bound", "refusals-mine")
	awaitAssigned(t, bound)
	// The other identity is on the scale set, so that only NMI stands between.
	awaitAssigned(t, runPod(t, node, "refusals-other", "refusals-others"))
	unbound := runPod(t, node, "refusals-unbound", "")
	unselected := runPod(t, node, "refusals-unselected", "no-such-binding")

	const base = "http://169.254.169.254"
	forwarded := metadata()
	forwarded.Set("X-Forwarded-For", "10.0.0.1")
	path := func(p string) string { return strings.Replace(query(), tokenURL, base+p, 1) }
	for what, test := range map[string]struct {
		from   *http.Client
		url    string
		header http.Header
		status int
		words  string
	}{
		"an identity that it is not bound to":          {httpClient(t, bound.NS), query("client_id", others.ClientID), metadata(), http.StatusForbidden, ""},
		"that identity by resource ID":                 {httpClient(t, bound.NS), query("mi_res_id", others.ID), metadata(), http.StatusForbidden, ""},
		"that identity by resource ID, old name":       {httpClient(t, bound.NS), query("msi_res_id", others.ID), metadata(), http.StatusForbidden, ""},
		"that identity by object ID":                   {httpClient(t, bound.NS), query("object_id", others.PrincipalID), metadata(), 0, ""},
		"the cluster's own identity":                   {httpClient(t, bound.NS), query("client_id", shared.Cloud.Cluster.ClientID), metadata(), 0, ""},
		"no header":                                    {httpClient(t, bound.NS), query(), nil, http.StatusBadRequest, "Required metadata header not specified"},
		"X-Forwarded-For":                              {httpClient(t, bound.NS), query(), forwarded, http.StatusBadRequest, ""},
		"no resource":                                  {httpClient(t, bound.NS), tokenURL + "?api-version=2018-02-01", metadata(), http.StatusBadRequest, "resource"},
		"another route of identities":                  {httpClient(t, bound.NS), path("/metadata/identity/anything-else"), metadata(), http.StatusNotFound, ""},
		"the platform's credential":                    {httpClient(t, bound.NS), path("/metadata/identity/getplatformmetadata"), metadata(), http.StatusNotFound, ""},
		"a path in other spelling":                     {httpClient(t, bound.NS), path(`/metadata/identity%5Coauth2%5Ctoken`), metadata(), http.StatusBadRequest, ""},
		"no label, asking for an identity that exists": {httpClient(t, unbound.NS), query("client_id", mine.ClientID), metadata(), http.StatusBadRequest, "Identity not found"},
		"no label, asking for none":                    {httpClient(t, unbound.NS), query(), metadata(), http.StatusBadRequest, v1.PodLabel},
		"a label that no binding selects":              {httpClient(t, unselected.NS), query(), metadata(), http.StatusNotFound, "no-such-binding"},
	} {
		t.Run(what, func(t *testing.T) {
			got, err := get(t.Context(), test.from, test.url, test.header)
			if err != nil {
				t.Fatal(err)
			}
			if got.status == http.StatusOK || test.status != 0 && got.status != test.status {
				t.Errorf("got status %d, want %d: %s", got.status, test.status, got.body)
			}
			if got.field("access_token") != "" || strings.Contains(got.body, "eyJ") {
				t.Error("the refusal carries a token")
			}
			if got.field("error") == "" || !strings.Contains(got.field("error_description"), test.words) {
				t.Errorf("the refusal does not say %q: %s", test.words, got.body)
			}
		})
	}
}
