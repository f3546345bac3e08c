package e2e_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/ownlink"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

func TestTokens(t *testing.T) {
	for _, node := range shared.Nodes {
		t.Run(string(node.Layout), func(t *testing.T) {
			noLeak(t, node)
			identity := newIdentity(t, "")
			bind(t, name(t), identity, name(t))
			pod := runPod(t, node, name(t), name(t))
			for how, id := range map[string]azidentity.ManagedIDKind{
				"by client ID":                 azidentity.ClientID(identity.ClientID),
				"by client ID in another case": azidentity.ClientID(strings.ToUpper(identity.ClientID)),
				"by resource ID":               azidentity.ResourceID(identity.ID),
				"without an ID":                nil,
			} {
				t.Run(how, func(t *testing.T) {
					token, err := sdkToken(t, pod, id)
					if err != nil {
						t.Fatal(err)
					}
					wantToken(t, pod, token, identity)
				})
			}
			t.Run("by object ID", func(t *testing.T) {
				got, err := get(t.Context(), httpClient(t, pod.NS), query("object_id", identity.PrincipalID), metadata())
				if err != nil || got.status != http.StatusOK {
					t.Fatalf("%v %+v", err, got)
				}
				wantToken(t, pod, got.field("access_token"), identity)
			})
			t.Run("by curl", func(t *testing.T) {
				curl, err := exec.LookPath("curl")
				if err != nil {
					t.Fatal(err)
				}
				output := runIn(t, pod, curl, "--silent", "--show-error", "--fail", "--max-time", "20", "--header", "Metadata:true", query())
				var fields map[string]string
				if err := json.Unmarshal([]byte(output), &fields); err != nil {
					t.Fatalf("%v: %s", err, output)
				}
				wantToken(t, pod, fields["access_token"], identity)
				for _, field := range []string{"client_id", "expires_in", "expires_on", "ext_expires_in", "not_before", "resource", "token_type"} {
					if fields[field] == "" {
						t.Errorf("the answer has no %s", field)
					}
				}
			})
		})
	}
}

// TestProgramsOfTheNode ask at the node's loopback, wherever pods are led to.
func TestProgramsOfTheNode(t *testing.T) {
	for _, node := range shared.Nodes {
		t.Run(string(node.Layout), func(t *testing.T) {
			identity := newIdentity(t, "")
			bind(t, name(t), identity, name(t))
			pod := runPod(t, node, name(t), name(t))
			awaitAssigned(t, pod)
			asked := "http://127.0.0.1:" + world.NMIPort + "/host/token/?resource=" + url.QueryEscape(vault)
			got, err := get(t.Context(), httpClient(t, node.NS), asked, http.Header{"Podname": {pod.Object.Name}, "Podns": {pod.Object.Namespace}})
			if err != nil || got.status != http.StatusOK {
				t.Fatalf("%v %+v", err, got)
			}
			var answer struct {
				Token struct {
					Value string `json:"access_token"`
				} `json:"token"`
			}
			if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
				t.Fatalf("%v: %s", err, got.body)
			}
			wantToken(t, pod, answer.Token.Value, identity)
		})
	}
}

// TestALinkOfNMIsOwn: no setting of other links is changed for it, and pods come
// there by the redirect alone.
func TestALinkOfNMIsOwn(t *testing.T) {
	node := shared.Nodes[1]
	pod := runPod(t, node, name(t), name(t))
	for _, link := range []string{"all", "default", "azure0", ownlink.Name} {
		if got, err := node.NS.Sysctl("net.ipv4.conf." + link + ".route_localnet"); err != nil || got != "0" {
			t.Errorf("route_localnet of %s is %q, %v", link, got, err)
		}
	}
	past := "http://" + netip.AddrPortFrom(redirect.LinkAddress(), 2579).String() + "/metadata/instance"
	if got, err := get(t.Context(), httpClient(t, pod.NS), past, metadata()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("past the redirect: %+v, %v", got, err)
	}
}

// TestDemoProgram runs the tutorials' program, unchanged, as a process of a pod.
func TestDemoProgram(t *testing.T) {
	noLeak(t, shared.Nodes[1])
	bind(t, name(t), shared.Cloud.Demo, name(t))
	pod := runPod(t, shared.Nodes[1], name(t), name(t))
	output := runIn(t, pod, filepath.Join(env.Root(), "bin", "demo"), "--vault-url="+world.VaultURL, "--show-value")
	if !strings.Contains(output, world.SecretValue) {
		t.Errorf("the program did not read the secret:\n%s", output)
	}
}

// TestLegacyManifests applies what the tutorials of 2018 printed.
func TestLegacyManifests(t *testing.T) {
	identity := newIdentity(t, "")
	apply(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: legacymanifests, namespace: default}
spec: {type: 0, ResourceID: `+identity.ID+`, ClientID: `+identity.ClientID+`}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: legacymanifests, namespace: default}
spec: {AzureIdentity: legacymanifests, Selector: legacymanifests}
`)
	pod := runPod(t, shared.Nodes[0], name(t), name(t))
	token, err := sdkToken(t, pod, azidentity.ClientID(identity.ClientID))
	if err != nil {
		t.Fatal(err)
	}
	wantToken(t, pod, token, identity)
}

// TestLastUserGone: the identity leaves the scale set with its last pod, and what
// others attached stays.
func TestLastUserGone(t *testing.T) {
	node, identity, foreign := shared.Nodes[1], newIdentity(t, ""), newIdentity(t, "-foreign")
	if err := shared.Sim.Attach(t.Context(), node.ScaleSetID(), foreign.ID); err != nil {
		t.Fatal(err)
	}
	bind(t, name(t), identity, name(t))
	first := runPod(t, node, name(t)+"-1", name(t))
	second := runPod(t, node, name(t)+"-2", name(t))
	awaitAssigned(t, first)
	awaitAssigned(t, second)
	wantAttached(t, node, identity, true)

	deletePod(t, first)
	if token, err := sdkToken(t, second, nil); err != nil {
		t.Error(err)
	} else {
		wantToken(t, second, token, identity)
	}
	deletePod(t, second)
	awaitDetached(t, node, identity)
	wantAttached(t, node, foreign, true)
	wantAttached(t, node, shared.Cloud.Cluster, true)
}

func runIn(t *testing.T, pod *world.Pod, path string, args ...string) string {
	t.Helper()
	cmd := pod.Command(t.Context(), path, args...)
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := pod.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(path), err, output.String())
	}
	return output.String()
}

func deletePod(t *testing.T, pod *world.Pod) {
	t.Helper()
	if err := pod.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
}
