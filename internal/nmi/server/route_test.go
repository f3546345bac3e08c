package server

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestRouteOf(t *testing.T) {
	for in, want := range map[string]struct {
		route route
		path  string
	}{
		"/metadata/identity/oauth2/token":        {token, "/metadata/identity/oauth2/token"},
		"/metadata/identity/oauth2/token/":       {token, "/metadata/identity/oauth2/token"},
		"/Metadata/identity/oauth2/token":        {token, "/metadata/identity/oauth2/token"},
		"/METADATA/identity/oauth2/token/":       {token, "/metadata/identity/oauth2/token"},
		"/metadata/instance":                     {instance, "/metadata/instance"},
		"/metadata/instance/":                    {instance, "/metadata/instance"},
		"/Metadata/instance/compute/vmId":        {instance, "/metadata/instance/compute/vmId"},
		"/metadata/Instance":                     {instanceLike, ""},
		"/metadata/INSTANCE/compute":             {instanceLike, ""},
		"/metadata/attested/document":            {exceptional, "/metadata/attested/document"},
		"/metadata/scheduledevents":              {exceptional, "/metadata/scheduledevents"},
		"/metadata/versions/":                    {exceptional, "/metadata/versions"},
		"/metadata/instances":                    {exceptional, "/metadata/instances"},
		"/metadata/identity":                     {notServed, ""},
		"/metadata/identity/":                    {notServed, ""},
		"/metadata/identity/info":                {notServed, ""},
		"/metadata/identity/oauth2":              {notServed, ""},
		"/metadata/identity/oauth2/tokenfoo":     {notServed, ""},
		"/metadata/identity/oauth2/token/x":      {notServed, ""},
		"/metadata/identity/oauth2/Token":        {notServed, ""},
		"/metadata/Identity/oauth2/token/":       {notServed, ""},
		"/metadata/identity/issuecredential":     {notServed, ""},
		"/metadata/identity/getplatformmetadata": {notServed, ""},
		"/":                                      {notServed, ""},
		"/metadata":                              {notServed, ""},
		"/metadata/":                             {notServed, ""},
		"/host/token":                            {notServed, ""},
		"/machine":                               {notServed, ""},
		"/metadata2/instance":                    {notServed, ""},
		"/latest/meta-data":                      {notServed, ""},
		"":                                       {malformed, ""},
		"*":                                      {malformed, ""},
		"http://h/metadata/instance":             {malformed, ""},
		"//metadata/instance":                    {malformed, ""},
		"/metadata//instance":                    {malformed, ""},
		"/metadata/instance//":                   {malformed, ""},
		"/metadata/./instance":                   {malformed, ""},
		"/metadata/../metadata/instance":         {malformed, ""},
		"/metadata/instance/..":                  {malformed, ""},
		"/metadata/instance/../identity/x":       {malformed, ""},
		"/metadata/%69nstance":                   {malformed, ""},
		"/metadata%2finstance":                   {malformed, ""},
		"/metadata/identity%2Foauth2%2Ftoken":    {malformed, ""},
		"/metadata/instance;x=y":                 {malformed, ""},
		`/metadata/identity\oauth2/token`:        {malformed, ""},
		`/metadata/identity/\oauth2\token/`:      {malformed, ""},
		`/metadata\instance`:                     {malformed, ""},
		"/metadata/in stance":                    {malformed, ""},
		"/metadata/instance#x":                   {malformed, ""},
		"/metadata/inst\u0251nce":                {malformed, ""},
		"/\u212Aetadata/instance":                {malformed, ""},
		"/metadata/instance\x00":                 {malformed, ""},
		"/metadata/\xffinstance":                 {malformed, ""},
	} {
		t.Run(in, func(t *testing.T) {
			if got, canonical := routeOf(in); got != want.route || canonical != want.path {
				t.Errorf("got %d %q, want %d %q", got, canonical, want.route, want.path)
			}
		})
	}
}

// Whatever is forwarded, every reader reads it as the same path, and it is on
// the list.
func FuzzRouteOf(f *testing.F) {
	for _, seed := range []string{"/metadata/identity/oauth2/token", "/Metadata/instance/a", "/metadata/attested", "/metadata/%2e%2e/x", `/metadata/identity\x`, "//", "/metadata/Identity"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		kind, canonical := routeOf(in)
		forwards := kind == token || kind == instance || kind == exceptional
		if forwards != (canonical != "") {
			t.Fatalf("%q: route %d, path %q", in, kind, canonical)
		}
		if !forwards {
			return
		}
		if !allowed(canonical, kind == exceptional) {
			t.Fatalf("%q would be forwarded as %q", in, canonical)
		}
		if len(in) < len(canonical) || !strings.EqualFold(in[:len(canonical)], canonical) || strings.Trim(in[len(canonical):], "/") != "" {
			t.Fatalf("%q became %q", in, canonical)
		}
	})
}

// allowed is the oracle: written on its own, from what must hold of a path that
// reaches the metadata service.
func allowed(p string, exceptionToo bool) bool {
	if p == "/metadata/identity/oauth2/token" {
		return true
	}
	parsed, err := url.Parse(p)
	if err != nil || parsed.Path != p || parsed.RawPath != "" || path.Clean(p) != p || strings.ContainsAny(p, `;\%`) {
		return false
	}
	if p == "/metadata/instance" || strings.HasPrefix(p, "/metadata/instance/") {
		return true
	}
	folded := strings.ToLower(p)
	return exceptionToo && strings.HasPrefix(p, "/metadata/") && len(p) > len("/metadata/") &&
		folded != "/metadata/identity" && !strings.HasPrefix(folded, "/metadata/identity/")
}
