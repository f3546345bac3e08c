package entra_test

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
)

func authorities(t testing.TB, texts ...string) entra.Authorities {
	t.Helper()
	out, err := entra.ParseAuthorities(texts)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFind(t *testing.T) {
	for name, test := range map[string]struct {
		list     []string
		endpoint string
		want     string
		words    string
	}{
		"none is the first":             {entra.KnownHosts(), "", "https://login.microsoftonline.com/", ""},
		"as the documents write it":     {entra.KnownHosts(), "https://login.microsoftonline.us/", "https://login.microsoftonline.us/", ""},
		"without its slash":             {entra.KnownHosts(), "https://login.chinacloudapi.cn", "https://login.chinacloudapi.cn/", ""},
		"in another case":               {entra.KnownHosts(), "HTTPS://Login.MicrosoftOnline.COM/", "https://login.microsoftonline.com/", ""},
		"with the port of https":        {entra.KnownHosts(), "https://login.microsoftonline.com:443/", "https://login.microsoftonline.com/", ""},
		"a cloud of one's own":          {[]string{"adfs.local.azurestack.external:8443"}, "https://adfs.local.azurestack.external:8443", "https://adfs.local.azurestack.external:8443/", ""},
		"with its path":                 {[]string{"https://adfs.local/adfs/"}, "https://adfs.local/adfs", "https://adfs.local/adfs/", ""},
		"without its path":              {[]string{"https://adfs.local/adfs/"}, "https://adfs.local/", "", "this install allows https://adfs.local/adfs/"},
		"the attacker's":                {entra.KnownHosts(), "https://login.attacker.example/", "", "may not go to https://login.attacker.example/"},
		"the attacker's, below":         {entra.KnownHosts(), "https://login.microsoftonline.com.attacker.example/", "", "may not go"},
		"the attacker's, above":         {entra.KnownHosts(), "https://x.login.microsoftonline.com/", "", "may not go"},
		"in front of an @":              {entra.KnownHosts(), "https://login.microsoftonline.com@attacker.example/", "", "a host, with a path at most"},
		"in front of an @ with a slash": {entra.KnownHosts(), `https://login.microsoftonline.com\@attacker.example/`, "", "not a URL"},
		"by http":                       {entra.KnownHosts(), "http://login.microsoftonline.com/", "", "must begin https://"},
		"by nothing":                    {entra.KnownHosts(), "login.microsoftonline.com", "", "must begin https://"},
		"another port":                  {entra.KnownHosts(), "https://login.microsoftonline.com:8443/", "", "may not go"},
		"a path of its own":             {entra.KnownHosts(), "https://login.microsoftonline.com/x/", "", "may not go"},
		"a path that climbs":            {entra.KnownHosts(), "https://login.microsoftonline.com/../", "", "dots"},
		"a query":                       {entra.KnownHosts(), "https://login.microsoftonline.com/?x", "", "a host, with a path at most"},
		"an empty query":                {entra.KnownHosts(), "https://login.microsoftonline.com/?", "", "a host, with a path at most"},
		"a fragment":                    {entra.KnownHosts(), "https://login.microsoftonline.com/#x", "", "a host, with a path at most"},
		"an escape":                     {entra.KnownHosts(), "https://login.microsoftonline.com%2eattacker.example/", "", "not a URL"},
		"letters that look alike":       {entra.KnownHosts(), "https://lоgin.microsoftonline.com/", "", "do not belong"},
		"a trailing dot":                {entra.KnownHosts(), "https://login.microsoftonline.com./", "", "may not go"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := authorities(t, test.list...).Find(test.endpoint)
			if test.words == "" {
				if err != nil || got.String() != test.want {
					t.Errorf("got %s, %v", got, err)
				}
				return
			}
			var forbidden *entra.ForbiddenError
			if !errors.As(err, &forbidden) || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %s, %v, want words of %q", got, err, test.words)
			}
		})
	}
}

func TestParseAuthoritiesRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		texts []string
		words string
	}{
		"none":           {nil, "at least one"},
		"an empty one":   {[]string{""}, "a host"},
		"http":           {[]string{"http://login.example"}, "must begin https://"},
		"several in one": {[]string{"a.example,b.example"}, "do not belong"},
		"a wildcard":     {[]string{"*.example"}, "do not belong"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := entra.ParseAuthorities(test.texts); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Whatever an endpoint is, what is found is one of the list, and every URL below
// it goes to the host that was allowed.
func FuzzFind(f *testing.F) {
	for _, seed := range []string{"", "https://login.microsoftonline.com/", "https://a@login.microsoftonline.com", "https://login.microsoftonline.com:443", `https:\\login.microsoftonline.com`, "//login.microsoftonline.us", "https://adfs.local/adfs"} {
		f.Add(seed)
	}
	list := authorities(f, append(entra.KnownHosts(), "https://adfs.local/adfs")...)
	want := []string{"https://login.microsoftonline.com/", "https://login.microsoftonline.us/", "https://login.chinacloudapi.cn/", "https://login.partner.microsoftonline.cn/", "https://adfs.local/adfs/"}
	f.Fuzz(func(t *testing.T, endpoint string) {
		got, err := list.Find(endpoint)
		if err != nil {
			var forbidden *entra.ForbiddenError
			if !errors.As(err, &forbidden) || got != (entra.Authority{}) {
				t.Fatalf("%q: %v, %v", endpoint, got, err)
			}
			return
		}
		for _, one := range want {
			if one != got.String() {
				continue
			}
			u, err := url.Parse(endpoint)
			if endpoint != "" && (err != nil || !strings.EqualFold(u.Hostname(), mustParse(t, one).Hostname()) || u.User != nil) {
				t.Fatalf("%q is read as %s", endpoint, one)
			}
			return
		}
		t.Fatalf("%q became %s", endpoint, got)
	})
}

func mustParse(t *testing.T, text string) *url.URL {
	t.Helper()
	out, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestScope(t *testing.T) {
	for resource, want := range map[string]string{
		"https://vault.azure.net":              "https://vault.azure.net/.default",
		"https://database.windows.net/":        "https://database.windows.net//.default",
		"00000003-0000-0000-c000-000000000000": "00000003-0000-0000-c000-000000000000/.default",
		"":                                     "",
		"https://a openid":                     "",
		"https://a\nb":                         "",
		"https://a\u00a0b":                     "",
	} {
		if got, err := entra.Scope(resource); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", resource, got, err)
		}
	}
}

func TestCheckTenant(t *testing.T) {
	for tenant, valid := range map[string]bool{
		"11111111-2222-3333-4444-555555555555": true, "contoso.onmicrosoft.com": true, "adfs": true,
		"": false, "..": false, ".": false, "a/b": false, "a?b": false, "a b": false, "a%2fb": false, "a\\b": false, "ä": false, "a@b": false, "a:b": false,
	} {
		if err := entra.CheckTenant(tenant); (err == nil) != valid {
			t.Errorf("%q: %v", tenant, err)
		}
	}
}

func TestReadEnvironment(t *testing.T) {
	for name, test := range map[string]struct{ content, want, words string }{
		"as the tools write it": {`{"name":"AzureStackCloud","activeDirectoryEndpoint":"https://adfs.local/adfs/","resourceManagerEndpoint":"https://m.local"}`, "https://adfs.local/adfs/", ""},
		"without an authority":  {`{}`, "", "no activeDirectoryEndpoint"},
		"not JSON":              {`name: x`, "", "reading the cloud's description"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cloud.json")
			if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := entra.ReadEnvironment(file)
			if got != test.want || (err != nil) != (test.words != "") || err != nil && !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	if _, err := entra.ReadEnvironment(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file is no error")
	}
}
