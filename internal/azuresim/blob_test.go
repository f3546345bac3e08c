package azuresim_test

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

const (
	accountURL = "https://demoaccount.blob.core.windows.net"
	listQuery  = "?restype=container&comp=list"
)

func TestManagedIdentityListsBlobs(t *testing.T) {
	clock := newClock()
	doc := document()
	doc.ScaleSets[0].UserAssigned = []string{demoID}
	// Another lifetime than other tests' keeps the SDK's cache of tokens apart.
	a := start(t, azuresim.Config{State: doc, Clock: clock.Now, TokenLifetime: 2 * time.Hour})
	for name, test := range map[string]struct {
		container string
		options   *container.ListBlobsFlatOptions
		want      []string // one line per page
	}{
		"all":           {"greetings", nil, []string{"en/day.txt en/hi.txt fr/bonjour.txt"}},
		"with a prefix": {"greetings", &container.ListBlobsFlatOptions{Prefix: new("en/")}, []string{"en/day.txt en/hi.txt"}},
		"in pages":      {"greetings", &container.ListBlobsFlatOptions{MaxResults: new(int32(2))}, []string{"en/day.txt en/hi.txt", "fr/bonjour.txt"}},
		"no such blobs": {"greetings", &container.ListBlobsFlatOptions{Prefix: new("de/")}, []string{""}},
		"none":          {"empty", nil, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			client := blobs(t, a, test.container, managedIdentity(t, a, azidentity.ClientID(demoClientID)))
			var got []string
			for pager := client.NewListBlobsFlatPager(test.options); pager.More(); {
				page, err := pager.NextPage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if *page.ContainerName != test.container || *page.ServiceEndpoint != accountURL+"/" || *page.Version != "2026-06-06" || page.RequestID == nil {
					t.Errorf("got container %s at %s, version %s", *page.ContainerName, *page.ServiceEndpoint, *page.Version)
				}
				var names []string
				for _, b := range page.Segment.BlobItems {
					names = append(names, *b.Name)
				}
				got = append(got, strings.Join(names, " "))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("pages (-want +got):\n%s", diff)
			}
		})
	}
	entries := a.Journal.Since(0)
	if last := entries[len(entries)-1]; last.Surface != journal.Storage || last.Principal != demoObjectID || !strings.Contains(last.Query, "comp=list") {
		t.Errorf("the journal says %s for %s", last, last.Principal)
	}
}

func TestBlobsHaveTheirProperties(t *testing.T) {
	clock := newClock()
	doc := document()
	doc.RoleAssignments = append(doc.RoleAssignments, model.RoleAssignment{Principal: micObjectID, Role: "Storage Blob Data Reader", Scope: userGroup})
	a := start(t, azuresim.Config{State: doc, Clock: clock.Now})
	page, err := blobs(t, a, "greetings", clientSecret(t, a, tenant, micClientID, secret)).NewListBlobsFlatPager(nil).NextPage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	day := page.Segment.BlobItems[0].Properties
	if *day.ContentLength != 8 || *day.BlobType != "BlockBlob" || *day.ContentType != "application/octet-stream" || *day.ETag == "" {
		t.Errorf("got length %d, type %s, content type %s", *day.ContentLength, *day.BlobType, *day.ContentType)
	}
	if want := "ca9768bd08c373665fbcc88021f088b6"; want != hex.EncodeToString(day.ContentMD5) {
		t.Errorf("got MD5 %x, want %s", day.ContentMD5, want)
	}
	if !day.LastModified.Equal(clock.Now().Truncate(time.Second)) || !day.CreationTime.Equal(*day.LastModified) {
		t.Errorf("got %s, want the time of loading %s", day.LastModified, clock.Now())
	}
}

func TestListingBlobsRefused(t *testing.T) {
	const container1 = accountID + "/blobServices/default/containers/greetings"
	for name, test := range map[string]struct {
		role, scope, container string
		status                 int
		code                   string // empty: allowed
	}{
		"no role":                          {"", "", "greetings", 403, "AuthorizationPermissionMismatch"},
		"the owner's role is no data role": {"Owner", "/subscriptions/" + subscription, "greetings", 403, "AuthorizationPermissionMismatch"},
		"a role of the vault's":            {"Key Vault Secrets User", userGroup, "greetings", 403, "AuthorizationPermissionMismatch"},
		"no role, no container":            {"", "", "gone", 403, "AuthorizationPermissionMismatch"},
		"no such container":                {"Storage Blob Data Reader", accountID, "gone", 404, "ContainerNotFound"},
		"the role on another container":    {"Storage Blob Data Reader", container1, "empty", 403, "AuthorizationPermissionMismatch"},
		"the role on the container alone":  {"Storage Blob Data Reader", container1, "greetings", 0, ""},
		"the role on the group":            {"storage blob data contributor", strings.ToUpper(userGroup), "greetings", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			doc := document()
			doc.RoleAssignments = nil
			if test.role != "" {
				doc.RoleAssignments = []model.RoleAssignment{{Principal: micObjectID, Role: test.role, Scope: test.scope}}
			}
			a := start(t, azuresim.Config{State: doc})
			_, err := blobs(t, a, test.container, clientSecret(t, a, tenant, micClientID, secret)).NewListBlobsFlatPager(nil).NextPage(t.Context())
			if test.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if code := errorCode(t, err, test.status); code != test.code {
				t.Errorf("got code %s, want %s", code, test.code)
			}
		})
	}
}

func TestBlobServiceRefusals(t *testing.T) {
	const list, xmlError = accountURL + "/greetings" + listQuery, `<?xml version="1.0" encoding="utf-8"?><Error><Code>`
	ours := minted("https://storage.azure.com")
	for name, test := range map[string]struct {
		method, url, version string
		token                func(*testing.T, *azure) string
		status               int
		words                string
		unexpected           bool
	}{
		"no token":             {"GET", list, "2026-06-06", none, 401, xmlError + "NoAuthenticationInformation</Code><Message>Server failed to authenticate the request. Please refer to the information in the www-authenticate header.\nRequestId:", false},
		"a broken token":       {"GET", list, "2026-06-06", func(*testing.T, *azure) string { return "abc" }, 401, xmlError + `InvalidAuthenticationInfo</Code>`, false},
		"a token for ARM":      {"GET", list, "2026-06-06", good, 401, `<AuthenticationErrorDetail>Audience validation failed. Audience did not match.</AuthenticationErrorDetail></Error>`, false},
		"an expired token":     {"GET", list, "2026-06-06", expired("https://storage.azure.com"), 401, `Lifetime validation failed. The token is expired.`, false},
		"another's signature":  {"GET", list, "2026-06-06", forged("https://storage.azure.com"), 401, `Signature validation failed.`, false},
		"another tenant's":     {"GET", list, "2026-06-06", foreignTo("https://storage.azure.com"), 401, `Issuer validation failed. Issuer did not match.`, false},
		"no version":           {"GET", list, "", ours, 400, `<Code>MissingRequiredHeader</Code>`, true},
		"unknown version":      {"GET", list, "2011-08-18", ours, 400, `<Code>InvalidHeaderValue</Code>`, true},
		"no results":           {"GET", list + "&maxresults=0", "2026-06-06", ours, 400, `<Code>OutOfRangeQueryParameterValue</Code>`, false},
		"maxresults no number": {"GET", list + "&maxresults=x", "2026-06-06", ours, 400, `<Code>OutOfRangeQueryParameterValue</Code>`, false},
		"a hierarchy":          {"GET", list + "&delimiter=/", "2026-06-06", ours, 400, `delimiter`, true},
		"a blob":               {"GET", accountURL + "/greetings/en/day.txt", "2026-06-06", ours, 400, `not simulated`, true},
		"the containers":       {"GET", accountURL + "/?comp=list", "2026-06-06", ours, 400, `not simulated`, true},
		"PUT":                  {"PUT", list, "2026-06-06", ours, 405, `UnsupportedHttpVerb`, true},
		"unknown account":      {"GET", strings.Replace(list, "demoaccount", "other", 1), "2026-06-06", none, 404, `There is no storage account`, true},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			a := start(t, azuresim.Config{State: document(), Clock: clock.Now})
			a.clock = clock
			if test.unexpected {
				a.ExpectUnexpected()
			}
			req := newRequest(t, test.method, test.url, "")
			if test.version != "" {
				req.Header.Set("x-ms-version", test.version)
			}
			if token := test.token(t, a); token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			a.wantRefusal(t, req, test.status, test.words, test.unexpected)
		})
	}
}

func TestBlobServiceHeadersOfARefusal(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	req := newRequest(t, http.MethodGet, accountURL+"/greetings"+listQuery, "")
	req.Header.Set("x-ms-version", "2026-06-06")
	resp, err := a.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for name, want := range map[string]string{
		"WWW-Authenticate": "Bearer authorization_uri=https://login.microsoftonline.com/" + tenant + "/oauth2/authorize resource_id=https://storage.azure.com",
		"x-ms-error-code":  "NoAuthenticationInformation", "x-ms-version": "2026-06-06", "Content-Type": "application/xml",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: got  %s\nwant %s", name, got, want)
		}
	}
}

func TestStorageAccountThroughTheControlAPI(t *testing.T) {
	a := start(t, azuresim.Config{})
	c, ctx := a.ControlClient(), t.Context()
	want := model.StorageAccount{ID: accountID, Containers: []model.Container{{Name: "abc", Blobs: []model.Blob{{Name: "a", Content: "1"}, {Name: "b"}}}, {Name: "def"}}}
	added, err := c.AddStorageAccount(ctx, model.StorageAccount{ID: accountID, Containers: []model.Container{
		{Name: "def"}, {Name: "abc", Blobs: []model.Blob{{Name: "b"}, {Name: "a", Content: "1"}}},
	}})
	check(t, err)
	if diff := cmp.Diff(want, added); diff != "" {
		t.Errorf("account (-want +got):\n%s", diff)
	}
	doc, err := c.State(ctx)
	check(t, err)
	check(t, c.Replace(ctx, doc))
	doc, err = c.State(ctx)
	check(t, err)
	if diff := cmp.Diff([]model.StorageAccount{want}, doc.StorageAccounts); diff != "" {
		t.Errorf("after loading it again (-want +got):\n%s", diff)
	}
}

func blobs(t *testing.T, a *azure, name string, credential azcore.TokenCredential) *container.Client {
	t.Helper()
	client, err := container.NewClient(accountURL+"/"+name, credential, &container.ClientOptions{ClientOptions: a.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}
