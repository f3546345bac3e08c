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
		"/metadata/scheduledevents":              {listed, "/metadata/scheduledevents"},
		"/Metadata/scheduledevents/":             {listed, "/metadata/scheduledevents"},
		"/metadata/ScheduledEvents":              {exceptional, "/metadata/ScheduledEvents"},
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
		"/host/token":                            {host, ""},
		"/host/token/":                           {host, ""},
		"/host/token/x":                          {notServed, ""},
		"/host/tokenfoo":                         {notServed, ""},
		"/Host/token":                            {notServed, ""},
		"/host":                                  {notServed, ""},
		"/metadata/token":                        {exceptional, "/metadata/token"},
		"/host//token":                           {malformed, ""},
		"/host%2ftoken":                          {malformed, ""},
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
			if got, canonical := routeOf(in, []string{"scheduledevents"}); got != want.route || canonical != want.path {
				t.Errorf("got %d %q, want %d %q", got, canonical, want.route, want.path)
			}
		})
	}
}

// Whatever is forwarded, every reader reads it as the same path, and it is on
// the list.
func FuzzRouteOf(f *testing.F) {
	for _, seed := range corpus() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		kind, canonical := routeOf(in, Listable())
		forwards := kind == token || kind == instance || kind == listed || kind == exceptional
		if forwards != (canonical != "") {
			t.Fatalf("%q: route %d, path %q", in, kind, canonical)
		}
		if !forwards {
			return
		}
		if !allowed(canonical, Listable(), kind == exceptional) {
			t.Fatalf("%q would be forwarded as %q", in, canonical)
		}
		if len(in) < len(canonical) || !strings.EqualFold(in[:len(canonical)], canonical) || strings.Trim(in[len(canonical):], "/") != "" {
			t.Fatalf("%q became %q", in, canonical)
		}
	})
}

// allowed is the oracle: written on its own, from what must hold of a path that
// reaches the metadata service.
func allowed(p string, list []string, exceptionToo bool) bool {
	if p == "/metadata/identity/oauth2/token" {
		return true
	}
	parsed, err := url.Parse(p)
	if err != nil || parsed.Path != p || parsed.RawPath != "" || path.Clean(p) != p || strings.ContainsAny(p, `;\%`) {
		return false
	}
	for _, name := range append([]string{"instance"}, list...) {
		if p == "/metadata/"+name || strings.HasPrefix(p, "/metadata/"+name+"/") {
			return true
		}
	}
	folded := strings.ToLower(p)
	return exceptionToo && strings.HasPrefix(p, "/metadata/") && len(p) > len("/metadata/") &&
		folded != "/metadata/identity" && !strings.HasPrefix(folded, "/metadata/identity/")
}

// corpus is every way that we know of to write a path differently. Among them
// are those of CVE-2022-23551 and what its mending left open.
func corpus() []string {
	out := []string{
		`/metadata/identity\oauth2\token/`, `/metadata/identity\oauth2/token`, `/metadata/identity/\oauth2\token`, `/metadata/identity\\\oauth2\\token`,
		`/metadata\identity\oauth2\token`, "/metadata%5Cidentity/oauth2/token", "/metadata%5cidentity%5coauth2%5ctoken",
		"/metadata;x/identity/oauth2/token", "/metadata/identity;x/oauth2/token", "/metadata/Identity/oauth2/token", "/metadata/identity/OAuth2/token",
		"/metadata/identity/oauth2/TOKEN", `/metadata\instance`, "/metadata/Instance", "/metadata/%49nstance",
	}
	for _, base := range []string{"/metadata/identity/oauth2/token", "/metadata/instance", "/metadata/instance/compute", "/metadata/attested/document", "/metadata/scheduledevents", "/metadata/identity/info", "/host/token"} {
		out = append(out, base, base+"/", base+"//", base+"/.", base+"/..", base+"/../x", base+";x", base+"%00", base+"%2f", base+"?a=b", base+"%3fa", base+"x", base+"/%2e%2e/identity/info",
			base+"/..;/identity/info", base+"/%252e%252e/identity/info", base+"/..%2fidentity/info", base+"/..%5cidentity/info", base+`/..\identity/info`, base+"%20", base+"%09", base+"#x", base+"%23x",
			"/"+base, "/."+base, "/x/.."+base, strings.ToUpper(base), strings.Replace(base, "metadata", "MetaData", 1),
			strings.ReplaceAll(base, "/", "//"), strings.Replace(base[1:], "/", `\`, 1), "/"+strings.ReplaceAll(base[1:], "/", `\`), "/"+strings.ReplaceAll(base[1:], "/", "%2F"), "/"+strings.ReplaceAll(base[1:], "/", "%5c"),
			strings.Replace(base, "i", "%69", 1), strings.Replace(base, "identity", "Identity", 1), strings.Replace(base, "instance", "INSTANCE", 1),
			"http://169.254.169.254"+base, "http://127.0.0.1:1"+base, base+"/~", base+"/,=:@!$&'()*+", strings.Replace(base, "metadata", "metadata/.", 1))
	}
	for i, target := range out {
		if !strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "http") {
			out[i] = "/" + target
		}
	}
	return out
}
