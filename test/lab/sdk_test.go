//go:build e2e

package lab_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// reading is what each of the programs gets in a pod: a token, and the secret
// that the key vault gives for it once it has verified it.
type reading struct {
	Token  string `json:"token"`
	Secret string `json:"secret"`
}

// TestPrograms: programs as they are find the identity of the pod by themselves.
func TestPrograms(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "programs")
	bind(t, namespace, "programs", identity)
	vault := newVault(t, namespace, identity)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, start := installNode(t), journalEnd(t)
	for node := range resources(t) {
		pod := runPod(t, newPod(namespace, node, "programs", node))
		awaitAssigned(t, pod, "programs")
		for what, read := range map[string]func(*testing.T) reading{
			"curl": func(t *testing.T) reading { return readByCurl(t, pod, vault) },
			"azure-sdk-for-go, ManagedIdentityCredential": func(t *testing.T) reading {
				return readBy(t, pod, "env", asProgram+"="+identity.ClientID, self, vault)
			},
			"azure-sdk-for-go, no client ID": func(t *testing.T) reading {
				return readBy(t, pod, "env", asProgram+"=", self, vault)
			},
			"@azure/identity, ManagedIdentityCredential": func(t *testing.T) reading {
				return readBy(t, pod, "node", script, vault, identity.ClientID, "managed")
			},
			"@azure/identity, DefaultAzureCredential": func(t *testing.T) reading {
				return readBy(t, pod, "node", script, vault, identity.ClientID, "default")
			},
		} {
			t.Run(node+"/"+what, func(t *testing.T) {
				got := read(t)
				wantTokenOf(t, identity, got.Token)
				if got.Secret != secretValue {
					t.Errorf("the program read %q from the vault, want %q", got.Secret, secretValue)
				}
			})
		}
	}
	requests(t, start) // none that Azure does not know
}

// readBy runs a program in the pod's network that prints what it has read.
func readBy(t *testing.T, pod *corev1.Pod, command ...string) reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := inPod(ctx, pod, command...)
	if err != nil {
		t.Fatal(err)
	}
	var got reading
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	return got
}

func readByCurl(t *testing.T, pod *corev1.Pod, vault string) reading {
	t.Helper()
	_, body := curl(t, pod, tokenURL, "Metadata: true")
	var token struct {
		Value string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &token); err != nil {
		t.Fatalf("%v: %q", err, body)
	}
	_, body = curl(t, pod, vault+"/secrets/demo?api-version=7.4", "Authorization: Bearer "+token.Value)
	var secret struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal([]byte(body), &secret); err != nil {
		t.Fatalf("%v: %q", err, body)
	}
	return reading{Token: token.Value, Secret: secret.Value}
}

// asProgram makes the test binary a program of its own, which runs in a pod's
// network. Its value is the client ID to ask for, or nothing.
const asProgram = "LAB_E2E_READ_AS"

// printReading is what the test binary does there: the argument is the vault.
func printReading(ctx context.Context, clientID string, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want the address of a vault, got %q", args)
	}
	var options azidentity.ManagedIdentityCredentialOptions
	if clientID != "" {
		options.ID = azidentity.ClientID(clientID)
	}
	credential, err := azidentity.NewManagedIdentityCredential(&options)
	if err != nil {
		return err
	}
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}})
	if err != nil {
		return err
	}
	vault, err := azsecrets.NewClient(args[0], credential, nil)
	if err != nil {
		return err
	}
	secret, err := vault.GetSecret(ctx, "demo", "", nil)
	if err != nil {
		return err
	}
	if secret.Value == nil {
		return errors.New("the secret has no value")
	}
	return json.NewEncoder(os.Stdout).Encode(reading{Token: token.Token, Secret: *secret.Value})
}

// installNode installs the packages of testdata/node by npm, by their lock, and
// returns the script beside them. A folder of the cache that is named for what
// is in it serves all runs. The programs are in Debian's packages nodejs and npm.
func installNode(t *testing.T) string {
	t.Helper()
	files := []string{"package.json", "package-lock.json", "read.js"}
	hash := sha256.New()
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join("testdata", "node", name))
		if err != nil {
			t.Fatal(err)
		}
		hash.Write(text)
	}
	done := filepath.Join(env.Root(), ".cache", "node", hex.EncodeToString(hash.Sum(nil)[:8]))
	if _, err := os.Stat(done); err == nil {
		return filepath.Join(done, "read.js")
	}
	fresh := fmt.Sprintf("%s.%d", done, os.Getpid()) // complete before it has its name
	if err := os.MkdirAll(fresh, 0o750); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(fresh) }) // moved away, unless the test failed
	if err := os.CopyFS(fresh, os.DirFS(filepath.Join("testdata", "node"))); err != nil {
		t.Fatal(err)
	}
	npm := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	npm.Dir = fresh
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	if err := os.Rename(fresh, done); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(done, "read.js")
}
