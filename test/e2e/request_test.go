package e2e_test

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

const (
	tokenURL = "http://169.254.169.254/metadata/identity/oauth2/token"
	vault    = "https://vault.azure.net"
)

// httpClient makes requests as a program in the namespace does.
func httpClient(t *testing.T, ns *netns.NS) *http.Client {
	t.Helper()
	transport, err := shared.Transport(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// answer is what came back from the metadata address.
type answer struct {
	status int
	header http.Header
	body   string
}

// field returns a string field of a JSON answer.
func (a answer) field(name string) string {
	var fields map[string]any
	if json.Unmarshal([]byte(a.body), &fields) != nil {
		return ""
	}
	value, _ := fields[name].(string)
	return value
}

// get asks the metadata address, or another URL, from a pod.
func get(ctx context.Context, c *http.Client, target string, header http.Header) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return answer{}, err
	}
	request.Header = header
	response, err := c.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{status: response.StatusCode, header: response.Header, body: string(body)}, err
}

func metadata() http.Header { return http.Header{"Metadata": {"true"}} }

// query is a token request's address.
func query(pairs ...string) string {
	values := url.Values{"api-version": {"2018-02-01"}, "resource": {vault}}
	for i := 0; i < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	return tokenURL + "?" + values.Encode()
}

// sdkToken gets a token by the Azure SDK's own credential, in a process of its
// own in the pod: within one process the SDK would answer from its cache, with
// whatever another test got.
func sdkToken(t *testing.T, pod *world.Pod, id azidentity.ManagedIDKind) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := pod.Command(ctx, program)
	cmd.Env = append(cmd.Env, asProgram+"="+formatID(id))
	var output, words strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &words
	if err := pod.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("getting a token in the pod: %w: %s", err, words.String())
	}
	return output.String(), nil
}

// asProgram makes the test binary the program of a pod: it prints a token of the
// identity that the variable names.
const asProgram = "E2E_PRINT_TOKEN_OF"

func formatID(id azidentity.ManagedIDKind) string {
	switch id := id.(type) {
	case azidentity.ClientID:
		return "client " + id.String()
	case azidentity.ResourceID:
		return "resource " + id.String()
	}
	return "none"
}

func parseID(s string) azidentity.ManagedIDKind {
	switch kind, id, _ := strings.Cut(s, " "); kind {
	case "client":
		return azidentity.ClientID(id)
	case "resource":
		return azidentity.ResourceID(id)
	}
	return nil
}

// printToken is what the test binary does in a pod.
func printToken(ctx context.Context, id azidentity.ManagedIDKind) error {
	credential, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ID: id})
	if err != nil {
		return err
	}
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{vault + "/.default"}})
	fmt.Print(token.Token)
	return err
}

// wantToken checks the signature against the simulator's published keys, and
// that the token is this identity's, for the vault.
func wantToken(t *testing.T, pod *world.Pod, raw string, want model.Identity) {
	t.Helper()
	keys := publishedKeys(t, httpClient(t, pod.NS))
	token, err := jwt.Parse(raw, func(token *jwt.Token) (any, error) {
		key, ok := keys[fmt.Sprint(token.Header["kid"])]
		if !ok {
			return nil, fmt.Errorf("key %v is not published", token.Header["kid"])
		}
		return key, nil
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithAudience(vault), jwt.WithExpirationRequired())
	if err != nil {
		t.Fatalf("the token does not verify: %v", err)
	}
	claims, _ := token.Claims.(jwt.MapClaims)
	if claims["appid"] != want.ClientID || claims["oid"] != want.PrincipalID || !strings.EqualFold(fmt.Sprint(claims["xms_mirid"]), want.ID) {
		t.Errorf("the token is of %v (%v), want %s", claims["appid"], claims["xms_mirid"], want.ClientID)
	}
}

func publishedKeys(t *testing.T, c *http.Client) map[string]*rsa.PublicKey {
	t.Helper()
	const base = "https://login.microsoftonline.com/00000000-aaaa-4bbb-8ccc-dddddddddddd"
	discovery, err := get(t.Context(), c, base+"/v2.0/.well-known/openid-configuration", nil)
	if err != nil || discovery.field("jwks_uri") == "" {
		t.Fatalf("reading the discovery document: %v %s", err, discovery.body)
	}
	jwks, err := get(t.Context(), c, discovery.field("jwks_uri"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var set struct {
		Keys []struct{ Kid, N, E string }
	}
	if err := json.Unmarshal([]byte(jwks.body), &set); err != nil {
		t.Fatal(err)
	}
	out := map[string]*rsa.PublicKey{}
	for _, key := range set.Keys {
		n, errN := base64.RawURLEncoding.DecodeString(key.N)
		e, errE := base64.RawURLEncoding.DecodeString(key.E)
		if errN != nil || errE != nil {
			t.Fatal(errN, errE)
		}
		out[key.Kid] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	}
	return out
}

// noLeak fails if a packet of the node's pods reaches the metadata service from
// now to the end of the test, or if the simulator was asked by one.
func noLeak(t *testing.T, node *world.Node) {
	t.Helper()
	counter, err := node.CountLeaks()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		count, err := counter.Count()
		if err != nil || count != 0 {
			t.Errorf("%d packets of pods on %s reached the metadata service, %v", count, node.Name, err)
		}
		entries, err := shared.Sim.Journal(context.WithoutCancel(t.Context()), 0)
		if err != nil {
			t.Error(err)
		}
		leaked := slices.IndexFunc(entries, func(e journal.Entry) bool {
			return e.Surface == journal.IMDS && node.PodCIDR.Contains(e.Remote)
		})
		if leaked >= 0 {
			t.Errorf("a pod's request reached the metadata service: %s", entries[leaked])
		}
	})
}
