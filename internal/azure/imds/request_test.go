package imds_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

const resourceID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"

func parsedID(t testing.TB, s string) armid.ID {
	t.Helper()
	id, err := armid.ParseUserAssigned(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCheckHeaders(t *testing.T) {
	for name, test := range map[string]struct {
		header    http.Header
		optional  bool
		want      string
		forwarded bool
	}{
		"true":                           {header: http.Header{"Metadata": {"true"}}},
		"any case":                       {header: http.Header{"Metadata": {"True"}}},
		"white space around":             {header: http.Header{"Metadata": {" TRUE "}}},
		"absent":                         {header: http.Header{}, want: "Required metadata header not specified"},
		"false":                          {header: http.Header{"Metadata": {"false"}}, want: "Required metadata header not specified"},
		"true, then false":               {header: http.Header{"Metadata": {"true", "false"}}, want: "Required metadata header not specified"},
		"absent and not required":        {header: http.Header{}, optional: true},
		"forwarded":                      {header: http.Header{"Metadata": {"true"}, "X-Forwarded-For": {"10.0.0.1"}}, want: "X-Forwarded-For", forwarded: true},
		"forwarded for nobody":           {header: http.Header{"Metadata": {"true"}, "X-Forwarded-For": {""}}, want: "X-Forwarded-For", forwarded: true},
		"forwarded, header not required": {header: http.Header{"X-Forwarded-For": {"a"}}, optional: true, want: "X-Forwarded-For", forwarded: true},
	} {
		t.Run(name, func(t *testing.T) {
			err := imds.CheckHeaders(test.header, !test.optional)
			if test.want == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			var refused *imds.RequestError
			if !errors.As(err, &refused) || !strings.Contains(refused.Description, test.want) || refused.Forwarded != test.forwarded {
				t.Fatalf("got %#v, want %q, forwarded %v", err, test.want, test.forwarded)
			}
		})
	}
}

func TestParseTokenQuery(t *testing.T) {
	id := parsedID(t, resourceID)
	for name, test := range map[string]struct {
		query string
		want  imds.TokenRequest
	}{
		"resource alone":           {"resource=https://vault.azure.net", imds.TokenRequest{Resource: "https://vault.azure.net"}},
		"escaped resource":         {"api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net%2F", imds.TokenRequest{Resource: "https://vault.azure.net/"}},
		"by client ID":             {"resource=r&client_id=ABC", imds.TokenRequest{Resource: "r", ClientID: "ABC"}},
		"by object ID":             {"resource=r&object_id=abc", imds.TokenRequest{Resource: "r", ObjectID: "abc"}},
		"by msi_res_id":            {"resource=r&msi_res_id=" + url.QueryEscape(resourceID), imds.TokenRequest{Resource: "r", ResourceID: id}},
		"by mi_res_id":             {"resource=r&mi_res_id=" + url.QueryEscape(strings.ToUpper(resourceID)), imds.TokenRequest{Resource: "r", ResourceID: id}},
		"both names, same ID":      {"resource=r&mi_res_id=" + resourceID + "&msi_res_id=" + strings.ToLower(resourceID), imds.TokenRequest{Resource: "r", ResourceID: id}},
		"names in any case":        {"Resource=r&CLIENT_ID=a", imds.TokenRequest{Resource: "r", ClientID: "a"}},
		"empty value is absent":    {"resource=r&client_id=&mi_res_id=", imds.TokenRequest{Resource: "r"}},
		"unknown names are let be": {"resource=r&x=y", imds.TokenRequest{Resource: "r"}},
		"past caches":              {"resource=r&bypass_cache=True", imds.TokenRequest{Resource: "r", BypassCache: true}},
		"not past caches":          {"resource=r&bypass_cache=false", imds.TokenRequest{Resource: "r"}},
		"neither yes nor no":       {"resource=r&bypass_cache=1", imds.TokenRequest{Resource: "r"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := imds.ParseTokenQuery(test.query)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(armid.ID{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseTokenQueryRefuses(t *testing.T) {
	for name, test := range map[string]struct{ query, words string }{
		"no resource":                {"client_id=a", "'resource' is missing"},
		"empty resource":             {"resource=", "'resource' is missing"},
		"a resource without end":     {"resource=" + strings.Repeat("a", 2000), "longer than"},
		"resource twice":             {"resource=a&resource=b", "more than once"},
		"resource twice, same":       {"resource=a&resource=a", "more than once"},
		"client_id twice by case":    {"resource=a&client_id=b&Client_ID=c", "more than once"},
		"an unknown name twice":      {"resource=a&x=1&x=2", "more than once"},
		"semicolons":                 {"resource=a;client_id=b", "cannot be parsed"},
		"broken escape":              {"resource=%zz", "cannot be parsed"},
		"resource ID is a name":      {"resource=r&mi_res_id=demo", "not the ID of a managed identity"},
		"resource ID of a VM":        {"resource=r&msi_res_id=/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v", "not the ID of a managed identity"},
		"resource IDs that differ":   {"resource=r&mi_res_id=" + resourceID + "&msi_res_id=" + resourceID + "2", "different identities"},
		"resource ID broken in both": {"resource=r&mi_res_id=x&msi_res_id=" + resourceID, "'mi_res_id' is not"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := imds.ParseTokenQuery(test.query)
			var refused *imds.RequestError
			if !errors.As(err, &refused) || !strings.Contains(refused.Description, test.words) {
				t.Fatalf("got %v, want a RequestError that says %q", err, test.words)
			}
		})
	}
}

func TestRebuildQuery(t *testing.T) {
	for name, test := range map[string]struct{ query, want, words string }{
		"as it was":            {query: "api-version=2018-02-01&resource=https%3A%2F%2Fr%2F", want: "api-version=2018-02-01&resource=https%3A%2F%2Fr%2F"},
		"unescaped":            {query: "resource=https://r/&b=c d", want: "resource=https%3A%2F%2Fr%2F&b=c+d"},
		"escaped for no need":  {query: "%72esource=%41", want: "resource=A"},
		"twice, in its order":  {query: "x=2&a=1&x=1", want: "x=2&a=1&x=1"},
		"names alone":          {query: "a&b=&=c", want: "a&b=&=c"},
		"empty parts":          {query: "&a=1&&b=2&", want: "a=1&b=2"},
		"nothing":              {},
		"an equals sign":       {query: "a=b=c", want: "a=b%3Dc"},
		"a hidden separator":   {query: "a=1%26client_id=2", want: "a=1%26client_id%3D2"},
		"bytes that end lines": {query: "a=%0d%0aHost:x%00", want: "a=%0D%0AHost%3Ax%00"},
		"a semicolon":          {query: "a;b", words: "semicolon"},
		"a semicolon, escaped": {query: "a%3Bb", want: "a%3Bb"},
		"half an escape":       {query: "a=%4", words: "cannot be parsed"},
		"half a name":          {query: "%zz", words: "cannot be parsed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := imds.RebuildQuery(test.query)
			var refused *imds.RequestError
			if got != test.want || (err != nil) != (test.words != "") || err != nil && (!errors.As(err, &refused) || !strings.Contains(refused.Description, test.words)) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// A query that was rebuilt says the same, and once more rebuilt is the same.
func FuzzRebuildQuery(f *testing.F) {
	for _, seed := range []string{"a=b&c=d", "a=%2541", "a;b", "&&=&", "resource=https://r/+%20", "\x00=\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, err := imds.RebuildQuery(query)
		before, parseErr := url.ParseQuery(query)
		if (err == nil) != (parseErr == nil) {
			t.Fatalf("%q: %v, and others: %v", query, err, parseErr)
		}
		if err != nil {
			return
		}
		after, err := url.ParseQuery(got)
		if err != nil {
			t.Fatalf("%q became %q: %v", query, got, err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("%q became %q: %s", query, got, diff)
		}
		if again, err := imds.RebuildQuery(got); err != nil || again != got {
			t.Fatalf("%q became %q, then %q, %v", query, got, again, err)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\\/;\"<>", r) }) {
			t.Fatalf("%q became %q", query, got)
		}
	})
}

// Whatever the query, what is understood is what every other reader of it would
// have understood: each name once, with the value that stands there.
func FuzzParseTokenQuery(f *testing.F) {
	for _, seed := range []string{"resource=r&client_id=c", "resource=r&object_id=o&mi_res_id=" + resourceID, "resource=a&resource=b", "Resource=a;b", "%zz", "resource=%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, err := imds.ParseTokenQuery(query)
		if err != nil {
			var refused *imds.RequestError
			if !errors.As(err, &refused) || refused.Description == "" {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatalf("accepted %q, which does not parse", query)
		}
		for _, want := range []struct{ name, value string }{{"resource", got.Resource}, {"client_id", got.ClientID}, {"object_id", got.ObjectID}} {
			if all := named(values, want.name); strings.Join(all, "") != want.value || len(all) > 1 {
				t.Fatalf("%q: %s is %q, understood as %q", query, want.name, all, want.value)
			}
		}
		if len(named(values, "msi_res_id"))+len(named(values, "mi_res_id")) == 0 && !got.ResourceID.IsZero() {
			t.Fatalf("%q: a resource ID from nowhere", query)
		}
	})
}

func named(values url.Values, name string) []string {
	var out []string
	for key, all := range values {
		if strings.ToLower(key) == name {
			out = append(out, all...)
		}
	}
	return out
}

func TestAQueryIsBounded(t *testing.T) {
	var query strings.Builder
	for i := range 31 {
		fmt.Fprintf(&query, "x%d=1&", i)
	}
	if _, err := imds.ParseTokenQuery(query.String() + "resource=r"); err != nil {
		t.Errorf("32 variables: %v", err)
	}
	if _, err := imds.ParseTokenQuery(query.String() + "resource=r&y=1"); err == nil {
		t.Error("33 variables are read")
	}
}
