package azuresim_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
)

const (
	imdsURL  = "http://169.254.169.254"
	tokenURL = imdsURL + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
	loginURL = "https://login.microsoftonline.com"
	armURL   = "https://management.azure.com"
	vaultURL = "https://demo-vault.vault.azure.net/secrets/greeting"
	version  = "?api-version=2025-04-01"
)

func TestIMDSRefusals(t *testing.T) {
	type header map[string]string
	metadata := header{"Metadata": "true"}
	for name, test := range map[string]struct {
		method, url string
		header      header
		status      int
		body        string // of the answer: a part of it
		unexpected  bool
	}{
		"no Metadata header":         {"GET", tokenURL, nil, 400, `{"error":"invalid_request","error_description":"Required metadata header not specified"}`, false},
		"Metadata: false":            {"GET", tokenURL, header{"Metadata": "false"}, 400, `Required metadata header not specified`, false},
		"forwarded":                  {"GET", tokenURL, header{"Metadata": "true", "X-Forwarded-For": "10.0.0.1"}, 400, `X-Forwarded-For`, false},
		"forwarded, empty":           {"GET", tokenURL, header{"Metadata": "true", "X-Forwarded-For": ""}, 400, `X-Forwarded-For`, false},
		"no api-version":             {"GET", imdsURL + "/metadata/identity/oauth2/token?resource=https://vault.azure.net", metadata, 400, `'api-version' is missing`, false},
		"unknown api-version":        {"GET", imdsURL + "/metadata/identity/oauth2/token?api-version=2018-02-02&resource=https://vault.azure.net", metadata, 400, `not supported`, true},
		"too old an api-version":     {"GET", imdsURL + "/metadata/identity/oauth2/token?api-version=2017-12-01&resource=https://vault.azure.net", metadata, 400, `not supported`, true},
		"no resource":                {"GET", imdsURL + "/metadata/identity/oauth2/token?api-version=2018-02-01", metadata, 400, `'resource' is missing`, false},
		"a resource that is none":    {"GET", imdsURL + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=vault", metadata, 400, `"error":"invalid_resource"`, false},
		"resource twice":             {"GET", tokenURL + "&resource=https://other.example", metadata, 400, `Duplicate query variable 'resource'`, false},
		"two selectors":              {"GET", tokenURL + "&client_id=" + demoClientID + "&object_id=" + demoObjectID, metadata, 400, `Only one of`, false},
		"an empty selector":          {"GET", tokenURL + "&client_id=", metadata, 400, `'client_id' is empty`, false},
		"unknown identity":           {"GET", tokenURL + "&client_id=" + micClientID, metadata, 400, `{"error":"invalid_request","error_description":"Identity not found"}`, false},
		"a resource ID that is none": {"GET", tokenURL + "&msi_res_id=demo", metadata, 400, `Identity not found`, false},
		"unknown query":              {"GET", tokenURL + "&clientid=" + demoClientID, metadata, 400, `Unknown query variable 'clientid'`, true},
		"query that cannot be read":  {"GET", tokenURL + "&x=%zz", metadata, 400, `cannot be parsed`, true},
		"POST":                       {"POST", tokenURL, metadata, 405, `not allowed`, true},
		"platform metadata":          {"GET", imdsURL + "/metadata/identity/getplatformmetadata?api-version=2025-05-01", metadata, 404, `Not found.`, true},
		"credential issue":           {"POST", imdsURL + "/metadata/identity/issuecredential", metadata, 404, `Not found.`, true},
		"anything else":              {"GET", imdsURL + "/metadata/identity/anything-else", metadata, 404, `Not found.`, true},
		"attested":                   {"GET", imdsURL + "/metadata/attested/document?api-version=2021-02-01", metadata, 404, `Not found.`, true},
		"not metadata":               {"GET", imdsURL + "/", metadata, 404, `Not found.`, true},
		"instance, no header":        {"GET", imdsURL + "/metadata/instance?api-version=2021-02-01", nil, 400, `{"error":"Required metadata header not specified"}`, false},
		"instance, no version":       {"GET", imdsURL + "/metadata/instance", metadata, 400, `"newest-versions":["2023-11-15","2023-07-01","2021-12-13"]`, false},
		"instance, unknown version":  {"GET", imdsURL + "/metadata/instance?api-version=1", metadata, 400, `"newest-versions"`, true},
		"instance as text":           {"GET", imdsURL + "/metadata/instance?api-version=2021-02-01&format=text", metadata, 400, `not simulated`, true},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.ScaleSets[0].UserAssigned = []string{demoID}
			a := start(t, azuresim.Config{State: doc})
			if test.unexpected {
				a.ExpectUnexpected()
			}
			req := newRequest(t, test.method, test.url, "")
			for name, value := range test.header {
				req.Header.Set(name, value)
			}
			a.wantRefusal(t, req, test.status, test.body, test.unexpected)
			if e := a.Journal.Since(0)[0]; e.Surface != journal.IMDS || e.Node != "node-0" || e.Remote != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("the journal says %s", e)
			}
		})
	}
}

// wantRefusal sends req and checks answer and journal.
func (a *azure) wantRefusal(t *testing.T, req *http.Request, status int, words string, unexpected bool) {
	t.Helper()
	got, body := request(t, a.Client(), req)
	if got != status || !strings.Contains(body, words) {
		t.Errorf("got %d %s, want %d and %s", got, body, status, words)
	}
	entries := a.Journal.Since(0)
	if last := entries[len(entries)-1]; last.Unexpected != unexpected || last.Status != status || last.Code == "" {
		t.Errorf("the journal says %s, unexpected %v", last, last.Unexpected)
	}
}

func TestIMDSTokenAnswer(t *testing.T) {
	clock := newClock()
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID, otherID}
	a := start(t, azuresim.Config{State: doc, Clock: clock.Now})
	for name, query := range map[string]string{
		"client_id":    "&client_id=" + demoClientID,
		"object_id":    "&object_id=" + demoObjectID,
		"msi_res_id":   "&msi_res_id=" + demoID,
		"mi_res_id":    "&mi_res_id=" + demoID,
		"bypass_cache": "&bypass_cache=true&client_id=" + demoClientID,
		"odd path":     "&client_id=" + demoClientID,
	} {
		t.Run(name, func(t *testing.T) {
			url := tokenURL + query
			if name == "odd path" {
				url = strings.Replace(url, "/metadata/identity/oauth2/token", "/Metadata/Identity/OAuth2/Token/", 1)
			}
			req := newRequest(t, http.MethodGet, url, "")
			req.Header.Set("Metadata", "TRUE")
			status, body := request(t, a.Client(), req)
			if status != http.StatusOK {
				t.Fatalf("got %d %s", status, body)
			}
			var got map[string]string
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%v: every value is a string: %s", err, body)
			}
			if oid := verify(t, a, got["access_token"])["oid"]; oid != demoObjectID {
				t.Errorf("the token is of %v", oid)
			}
			delete(got, "access_token")
			want := map[string]string{
				"client_id": demoClientID, "resource": "https://vault.azure.net", "token_type": "Bearer",
				"expires_in": "86400", "ext_expires_in": "86400",
				"expires_on": strconv.FormatInt(clock.Now().Add(24*time.Hour).Unix(), 10),
				"not_before": strconv.FormatInt(clock.Now().Add(-5*time.Minute).Unix(), 10),
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIMDSKnowsTheNodeByItsSourceAddress(t *testing.T) {
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID}
	doc.ScaleSets = append(doc.ScaleSets, model.ScaleSet{ID: scaleSetID + "2", UserAssigned: []string{otherID}})
	doc.Identities[1].PrincipalID = "cccccccc-0000-4000-8000-000000000009"
	doc.Nodes = append(doc.Nodes,
		model.Node{Name: "node-1", ScaleSet: scaleSetID + "2", Instance: 7, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.2.0/24")}},
		model.Node{Name: "node-2", ScaleSet: scaleSetID, Instance: 2, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.2.9/32")}},
	)
	a := start(t, azuresim.Config{State: doc})
	for source, want := range map[string][3]string{
		"127.0.0.1": {"node-0", demoObjectID, scaleSetName + "_0"},
		"127.0.2.5": {"node-1", doc.Identities[1].PrincipalID, scaleSetName + "2_7"}, // a pod of node-1: real IMDS would answer it
		"127.0.2.9": {"node-2", demoObjectID, scaleSetName + "_2"},                   // the longer prefix
	} {
		req := newRequest(t, http.MethodGet, tokenURL, "")
		req.Header.Set("Metadata", "true")
		if status, body := request(t, a.ClientFrom(t, netip.MustParseAddr(source)), req); status != http.StatusOK {
			t.Fatalf("from %s: got %d %s", source, status, body)
		}
		entries := a.Journal.Since(0)
		if e := entries[len(entries)-1]; e.Node != want[0] || e.Principal != want[1] || e.Remote.String() != source {
			t.Errorf("from %s: the journal says %s for %s, want %v", source, e, e.Principal, want)
		}
		req = newRequest(t, http.MethodGet, imdsURL+"/metadata/instance?api-version=2021-02-01&format=json", "")
		req.Header.Set("Metadata", "true")
		if _, body := request(t, a.ClientFrom(t, netip.MustParseAddr(source)), req); !strings.Contains(body, `"name":"`+want[2]+`"`) {
			t.Errorf("from %s: instance is %s, want name %s", source, body, want[2])
		}
	}
	a.ExpectUnexpected()
	req := newRequest(t, http.MethodGet, tokenURL, "")
	req.Header.Set("Metadata", "true")
	if status, _ := request(t, a.ClientFrom(t, netip.MustParseAddr("127.0.3.1")), req); status != http.StatusNotFound {
		t.Errorf("from nowhere: got %d, want 404", status)
	}
	if got := a.Journal.Unexpected(); len(got) != 1 || got[0].Node != "" {
		t.Errorf("unexpected entries: %v", got)
	}
}

func TestARMRefusals(t *testing.T) {
	const json = "application/json"
	for name, test := range map[string]struct {
		method, path, body string
		token              func(*testing.T, *azure) string
		status             int
		words              string
		unexpected         bool
	}{
		"no token":            {"GET", scaleSetID + version, "", none, 401, `"code":"AuthenticationFailed"`, false},
		"a token of nobody's": {"GET", scaleSetID + version, "", func(*testing.T, *azure) string { return "a.b.c" }, 401, `"code":"InvalidAuthenticationToken"`, false},
		"a token for another": {"GET", scaleSetID + version, "", minted("https://vault.azure.net"), 401, `"code":"InvalidAuthenticationTokenAudience"`, false},
		"an expired token":    {"GET", scaleSetID + version, "", expired("https://management.azure.com"), 401, `"code":"ExpiredAuthenticationToken"`, false},
		"another tenant's":    {"GET", scaleSetID + version, "", foreignTo("https://management.azure.com"), 401, `"code":"InvalidAuthenticationToken"`, false},
		"another's signature": {"GET", scaleSetID + version, "", forged("https://management.azure.com"), 401, `"code":"InvalidAuthenticationToken"`, false},
		"no api-version":      {"GET", scaleSetID, "", good, 400, `"code":"MissingApiVersionParameter"`, true},
		"unknown api-version": {"GET", scaleSetID + "?api-version=2019-12-01", "", good, 400, `The supported api-versions are '2025-04-01'`, true},
		"unknown query":       {"GET", scaleSetID + version + "&$expand=userData", "", good, 400, `'$expand'`, true},
		"api-version twice":   {"GET", scaleSetID + version + "&api-version=2025-04-01", "", good, 400, `more than once`, true},
		"unknown type":        {"GET", strings.Replace(scaleSetID, "virtualMachineScaleSets", "disks", 1) + version, "", good, 404, `"code":"InvalidResourceType"`, true},
		"an instance":         {"GET", scaleSetID + "/virtualMachines/0" + version, "", good, 404, `"code":"InvalidResourceType"`, true},
		"the list":            {"GET", nodeGroup + "/providers/Microsoft.Compute/virtualMachineScaleSets" + version, "", good, 404, `"code":"InvalidResourceType"`, true},
		"unknown, no token":   {"GET", "/providers" + version, "", none, 401, `"code":"AuthenticationFailed"`, true},
		"PUT":                 {"PUT", scaleSetID + version, "{}", good, 405, `HTTP method 'PUT'`, true},
		"DELETE":              {"DELETE", scaleSetID + version, "", good, 405, `HTTP method 'DELETE'`, true},
		"a VM's extension":    {"GET", vmID + "/extensions/x" + version, "", good, 404, `"code":"InvalidResourceType"`, true},
		"PUT a VM":            {"PUT", vmID + version, "{}", good, 405, `HTTP method 'PUT'`, true},
		"a VM's other field":  {"PATCH", vmID + version, `{"identity":{"type":"None"},"tags":{}}`, good, 400, `unknown field \"tags\"`, true},
		"no such operation":   {"GET", "/subscriptions/" + subscription + "/providers/Microsoft.Compute/locations/westeurope/operations/x" + version, "", good, 404, `"code":"NotFound"`, false},
		"DELETE an operation": {"DELETE", "/subscriptions/" + subscription + "/providers/Microsoft.Compute/locations/westeurope/operations/x" + version, "", good, 405, `UnsupportedHttpVerb`, true},
		"no body":             {"PATCH", scaleSetID + version, "", good, 400, `"code":"InvalidRequestContent"`, true},
		"not JSON":            {"PATCH", scaleSetID + version, "identity", good, 400, `"code":"InvalidRequestContent"`, true},
		"two values":          {"PATCH", scaleSetID + version, `{"identity":{"type":"None"}} {}`, good, 400, `more text behind`, true},
		"another field":       {"PATCH", scaleSetID + version, `{"identity":{"type":"None"},"tags":{}}`, good, 400, `unknown field \"tags\"`, true},
		"a field of identity": {"PATCH", scaleSetID + version, `{"identity":{"type":"None","identityIds":[]}}`, good, 400, `unknown field \"identityIds\"`, true},
		"a field of a value":  {"PATCH", scaleSetID + version, `{"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + demoID + `":{"name":"x"}}}}`, good, 400, `unknown field \"name\"`, true},
		"no identity":         {"PATCH", scaleSetID + version, `{}`, good, 400, `holds no identity`, true},
		"an unknown type":     {"PATCH", scaleSetID + version, `{"identity":{"type":"Assigned"}}`, good, 400, `The value 'Assigned'`, true},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			a := start(t, azuresim.Config{State: document(), Clock: clock.Now})
			a.clock = clock
			if test.unexpected {
				a.ExpectUnexpected()
			}
			req := newRequest(t, test.method, armURL+test.path, test.body)
			req.Header.Set("Content-Type", json)
			if token := test.token(t, a); token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			a.wantRefusal(t, req, test.status, test.words, test.unexpected)
		})
	}
}

func TestARMTakesTokensForAnyOfItsNames(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	for _, audience := range []string{"https://management.azure.com", "https://management.azure.com/", "https://management.core.windows.net/"} {
		req := newRequest(t, http.MethodGet, armURL+scaleSetID+version, "")
		req.Header.Set("Authorization", "Bearer "+minted(audience)(t, a))
		if status, body := request(t, a.Client(), req); status != http.StatusOK {
			t.Errorf("%s: got %d %s", audience, status, body)
		}
	}
}

func TestKeyVaultRefusals(t *testing.T) {
	const current = "?api-version=2026-04-01"
	for name, test := range map[string]struct {
		method, url string
		token       func(*testing.T, *azure) string
		status      int
		words       string
		unexpected  bool
	}{
		"no token":            {"GET", vaultURL + current, none, 401, `AKV10000`, false},
		"a broken token":      {"GET", vaultURL + current, func(*testing.T, *azure) string { return "abc" }, 401, `BearerReadAccessTokenFailed`, false},
		"a token for ARM":     {"GET", vaultURL + current, good, 401, `Invalid audience. Expected https://vault.azure.net, found: https://management.azure.com`, false},
		"another tenant's":    {"GET", vaultURL + current, foreignTo("https://vault.azure.net"), 401, `Invalid issuer`, false},
		"no api-version":      {"GET", vaultURL, good, 400, `api-version must be specified`, true},
		"unknown api-version": {"GET", vaultURL + "?api-version=7.9", good, 400, `(7.9) is not recognized`, true},
		"unknown query":       {"GET", vaultURL + current + "&maxresults=1", good, 400, `'maxresults'`, true},
		"the list":            {"GET", strings.TrimSuffix(vaultURL, "/greeting") + current, good, 404, `not simulated`, true},
		"a key":               {"GET", strings.Replace(vaultURL, "secrets", "keys", 1) + current, good, 404, `not simulated`, true},
		"PUT":                 {"PUT", vaultURL + current, good, 405, `PUT`, true},
		"unknown vault":       {"GET", strings.Replace(vaultURL, "demo-vault", "other", 1) + current, none, 404, `no vault 'other'`, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, azuresim.Config{State: document()})
			if test.unexpected {
				a.ExpectUnexpected()
			}
			req := newRequest(t, test.method, test.url, "")
			if token := test.token(t, a); token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			a.wantRefusal(t, req, test.status, test.words, test.unexpected)
		})
	}
}

func TestKeyVaultChallenge(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	resp, err := a.Client().Do(newRequest(t, http.MethodGet, vaultURL+"?api-version=2026-04-01", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	want := `Bearer authorization="https://login.microsoftonline.com/` + tenant + `", resource="https://vault.azure.net"`
	if got := resp.Header.Get("WWW-Authenticate"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEntraRefusals(t *testing.T) {
	const tokens = "/" + tenant + "/oauth2/v2.0/token"
	form := "client_id=" + micClientID + "&grant_type=client_credentials&scope=https://vault.azure.net/.default"
	for name, test := range map[string]struct {
		method, path, body string
		status             int
		words              string
		unexpected         bool
	}{
		"no secret":         {"POST", tokens, form, 401, `"error_codes":[7000216]`, false},
		"an assertion":      {"POST", tokens, form + "&client_assertion=abc", 400, `"error_codes":[50027]`, false},
		"another grant":     {"POST", tokens, strings.Replace(form, "client_credentials", "password", 1), 400, `"error":"unsupported_grant_type"`, true},
		"no scope":          {"POST", tokens, "client_id=x&grant_type=client_credentials", 400, `"error_codes":[900144]`, false},
		"scope twice":       {"POST", tokens, form + "&scope=x", 400, `'scope' is duplicated`, false},
		"two resources":     {"POST", tokens, form + "%20https://other.example/.default", 400, `"error_codes":[1002012]`, false},
		"GET a token":       {"GET", tokens, "", 405, `only accepts POST`, true},
		"POST a document":   {"POST", "/" + tenant + "/discovery/v2.0/keys", "", 405, `only accepts GET`, true},
		"the old endpoint":  {"POST", "/" + tenant + "/oauth2/token", form, 404, `is not known`, true},
		"nothing":           {"GET", "/", "", 404, `is not known`, true},
		"unknown query":     {"GET", "/" + tenant + "/discovery/v2.0/keys?x=1", "", 400, `'x'`, true},
		"unknown tenant's":  {"GET", "/" + subscription + "/v2.0/.well-known/openid-configuration", "", 400, `"error":"invalid_tenant"`, false},
		"unknown instance":  {"GET", "/common/discovery/instance?api-version=1.1&authorization_endpoint=https://evil.example/x/oauth2/v2.0/authorize", "", 400, `"error":"invalid_instance"`, false},
		"unknown discovery": {"GET", "/common/discovery/instance?api-version=9&authorization_endpoint=" + loginURL, "", 400, `'9' is not supported`, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, azuresim.Config{State: document()})
			if test.unexpected {
				a.ExpectUnexpected()
			}
			req := newRequest(t, test.method, loginURL+test.path, test.body)
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			a.wantRefusal(t, req, test.status, test.words, test.unexpected)
		})
	}
}

func TestEntraDocuments(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	type document struct {
		Issuer  string `json:"issuer"`
		Token   string `json:"token_endpoint"`
		JWKSURI string `json:"jwks_uri"`
	}
	for path, want := range map[string]document{
		"/.well-known/openid-configuration":      {"https://sts.windows.net/" + tenant + "/", loginURL + "/" + tenant + "/oauth2/token", loginURL + "/" + tenant + "/discovery/keys"},
		"/v2.0/.well-known/openid-configuration": {loginURL + "/" + tenant + "/v2.0", loginURL + "/" + tenant + "/oauth2/v2.0/token", loginURL + "/" + tenant + "/discovery/v2.0/keys"},
	} {
		var got document
		get(t, a, loginURL+"/"+strings.ToUpper(tenant)+path, &got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	var instance struct {
		Endpoint string `json:"tenant_discovery_endpoint"`
	}
	get(t, a, loginURL+"/common/discovery/instance?api-version=1.1&authorization_endpoint="+loginURL+"/"+tenant+"/oauth2/v2.0/authorize", &instance)
	if want := loginURL + "/" + tenant + "/v2.0/.well-known/openid-configuration"; instance.Endpoint != want {
		t.Errorf("got %s, want %s", instance.Endpoint, want)
	}
}

func TestUnknownHostsAreUnexpected(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	a.ExpectUnexpected()
	if resp, err := a.Client().Do(newRequest(t, http.MethodGet, "https://graph.microsoft.com/", "")); err == nil {
		resp.Body.Close()
		t.Error("a handshake for an unknown name succeeded")
	}
	req := newRequest(t, http.MethodGet, armURL+"/", "")
	req.Host = "graph.microsoft.com"
	if status, body := request(t, a.Client(), req); status != http.StatusMisdirectedRequest {
		t.Errorf("got %d %s", status, body)
	}
	var surfaces []string
	for _, e := range a.Journal.Unexpected() {
		surfaces = append(surfaces, e.Surface+" "+e.Host)
	}
	if diff := cmp.Diff([]string{"tls graph.microsoft.com", "https graph.microsoft.com"}, surfaces); diff != "" {
		t.Errorf("unexpected entries (-want +got):\n%s", diff)
	}
}

func TestJournalAndLogHoldNoSecret(t *testing.T) {
	var log bytes.Buffer
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID}
	a := start(t, azuresim.Config{State: doc, Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	a.ExpectUnexpected()
	bearer := good(t, a)
	for _, url := range []string{tokenURL + "&access_token=" + bearer, armURL + scaleSetID + version + "&secret=" + "s3cr3t"} {
		req := newRequest(t, http.MethodGet, url, "")
		req.Header.Set("Authorization", "Bearer "+bearer)
		req.Header.Set("Metadata", "true")
		request(t, a.Client(), req)
	}
	tokenOf := token(t, clientSecret(t, a, tenant, micClientID, secret), "https://nosecret.example/.default")
	text, err := json.Marshal(a.Journal.Since(0))
	if err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(a.State.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	all := string(text) + string(state) + fmt.Sprintf("%v %+v %#v", secret, secret, secret)
	for _, hidden := range []string{bearer, "s3cr3t", string(secret), tokenOf, "hello"} {
		if strings.Contains(all, hidden) {
			t.Errorf("%q is in the journal or the state", hidden)
		}
	}
	a.Stop(t)
	if strings.Contains(log.String(), bearer) || strings.Contains(log.String(), string(secret)) {
		t.Error("a secret is in the log")
	}
}

// The tokens of the refusal tables.

func none(*testing.T, *azure) string { return "" }

func good(t *testing.T, a *azure) string { return minted("https://management.azure.com")(t, a) }

func minted(audience string) func(*testing.T, *azure) string {
	return func(t *testing.T, a *azure) string { return mint(t, a, tenant, audience) }
}

// expired returns tokens whose time is over.
func expired(audience string) func(*testing.T, *azure) string {
	return func(t *testing.T, a *azure) string {
		raw := minted(audience)(t, a)
		a.clock.Advance(time.Hour)
		return raw
	}
}

// foreignTo returns tokens that are good but for their issuer.
func foreignTo(audience string) func(*testing.T, *azure) string {
	return func(t *testing.T, a *azure) string { return mint(t, a, subscription, audience) }
}

// forged returns tokens that are good but for their signature.
func forged(audience string) func(*testing.T, *azure) string {
	return func(t *testing.T, _ *azure) string {
		other, err := azuresim.New(azuresim.Config{State: document()})
		if err != nil {
			t.Fatal(err)
		}
		return mint(t, &azure{Sim: &simtest.Sim{Simulator: other}}, tenant, audience)
	}
}

func mint(t *testing.T, a *azure, tenant, audience string) string {
	t.Helper()
	got, err := a.Tokens.Mint(tenant, state.Principal{ObjectID: micObjectID, ClientID: micClientID}, audience)
	if err != nil {
		t.Fatal(err)
	}
	return got.Value.Reveal()
}

// request sends one request through a client of the simulator and returns
// status and body. The body is closed.
func request(t *testing.T, client *http.Client, req *http.Request) (int, string) {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

func newRequest(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// imds asks node-0's IMDS for a token of a client ID, as curl would.
func imds(t *testing.T, a *azure, clientID string) (int, string) {
	t.Helper()
	return imdsFrom(t, a, "127.0.0.1", clientID)
}

func imdsFrom(t *testing.T, a *azure, source, clientID string) (int, string) {
	t.Helper()
	req := newRequest(t, http.MethodGet, tokenURL+"&client_id="+clientID, "")
	req.Header.Set("Metadata", "true")
	return request(t, a.ClientFrom(t, netip.MustParseAddr(source)), req)
}
