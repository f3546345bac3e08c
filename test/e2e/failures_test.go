package e2e_test

import (
	"context"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// TestAgentGone: while NMI is away, by a crash or an orderly end, a pod gets
// nothing, neither a token nor the node's own metadata service.
func TestAgentGone(t *testing.T) {
	const index = 1
	node := shared.Nodes[index]
	noLeak(t, node)
	identity := newIdentity(t, "")
	bind(t, name(t), identity, name(t))
	pod := runPod(t, node, name(t), name(t))
	awaitAssigned(t, pod)

	for what, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "terminated": syscall.SIGTERM} {
		t.Run(what, func(t *testing.T) {
			if err := shared.nmi[index].Signal(t.Context(), signal); err != nil {
				t.Fatal(err)
			}
			impatient := httpClient(t, pod.NS)
			impatient.Timeout = 2 * time.Second
			for _, target := range []string{query(), "http://169.254.169.254/metadata/instance?api-version=2021-02-01"} {
				if got, err := get(t.Context(), impatient, target, metadata()); err == nil {
					t.Errorf("without NMI a pod was answered %d: %s", got.status, got.body)
				}
			}
			var err error
			if shared.nmi[index], err = node.StartNMI(t.Context(), "standard"); err != nil {
				t.Fatal(err)
			}
			token, err := sdkToken(t, pod, nil)
			if err != nil {
				t.Fatal(err)
			}
			wantToken(t, pod, token, identity)
		})
	}
}

// TestRestarts: MIC's own token comes by the exception, through NMI of its node,
// and comes again after NMI and the API server were restarted.
func TestRestarts(t *testing.T) {
	cluster := azidentity.ClientID(shared.Cloud.Cluster.ClientID)
	ownToken := func() {
		t.Helper()
		token, err := sdkToken(t, shared.mic.Pod, cluster)
		if err != nil {
			t.Fatal(err)
		}
		wantToken(t, shared.mic.Pod, token, shared.Cloud.Cluster)
	}
	ownToken()

	if err := shared.StopAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	ownToken() // from NMI's caches, with no API server
	if err := shared.nmi[0].Signal(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	process, err := shared.Nodes[0].LaunchNMI(t.Context(), "--operation-mode=standard")
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := shared.Nodes[0].AwaitNMI(t.Context(), process); err != nil {
		t.Fatal(err)
	}
	shared.nmi[0] = process
	ownToken()

	identity := newIdentity(t, "")
	bind(t, name(t), identity, name(t))
	pod := runPod(t, shared.Nodes[0], name(t), name(t))
	awaitAssigned(t, pod)
	token, err := sdkToken(t, pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantToken(t, pod, token, identity)
}

// TestARMUnreachable: the failure shows where the user looks, other resources go
// on, and it mends itself.
func TestARMUnreachable(t *testing.T) {
	broken, sound := shared.Nodes[0], shared.Nodes[1]
	f, err := shared.Sim.AddFault(t.Context(), fault.Fault{
		Match:    fault.Match{Surface: journal.ARM, Path: "*" + lastSegment(broken.ScaleSetID()) + "*"},
		Response: fault.Response{Drop: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shared.Sim.RemoveFault(context.WithoutCancel(t.Context()), f.ID) }) // when the test fails
	identity := newIdentity(t, "")
	bind(t, name(t), identity, name(t))
	waiting := runPod(t, broken, name(t)+"-broken", name(t))
	served := runPod(t, sound, name(t)+"-sound", name(t))
	awaitAssigned(t, served)
	awaitObject(t, &v1.AzureIdentityAttachmentList{}, "Synced=False with ARMUnavailable", func(a *v1.AzureIdentityAttachment) bool {
		return strings.EqualFold(a.Spec.ResourceID, broken.ScaleSetID()) && objects.HasCondition(a.Status.Conditions, v1.ConditionSynced, v1.ReasonARMUnavailable)
	})
	awaitObject(t, &v1.AzureAssignedIdentityList{}, "the reason on the assignment", func(a *v1.AzureAssignedIdentity) bool {
		return a.Spec.Pod == waiting.Object.Name && objects.HasCondition(a.Status.Conditions, v1.ConditionReady, v1.ReasonARMUnavailable)
	})
	got, err := get(t.Context(), httpClient(t, waiting.NS), query(), metadata())
	if err != nil || got.status != http.StatusNotFound {
		t.Errorf("while ARM is away a pod is answered %d %s, %v", got.status, got.body, err)
	}
	if err := shared.Sim.RemoveFault(t.Context(), f.ID); err != nil {
		t.Fatal(err)
	}
	awaitAssigned(t, waiting)
}

func lastSegment(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// TestMissingIdentity: a binding to nothing says so on the binding.
func TestMissingIdentity(t *testing.T) {
	apply(t, `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: missingidentity, namespace: default}
spec: {azureIdentity: nowhere, selector: missingidentity}
`)
	pod := runPod(t, shared.Nodes[0], name(t), name(t))
	awaitObject(t, &v1.AzureIdentityBindingList{}, "Ready=False with IdentityNotFound", func(b *v1.AzureIdentityBinding) bool {
		return b.Name == "missingidentity" && objects.HasCondition(b.Status.Conditions, v1.ConditionReady, v1.ReasonIdentityNotFound)
	})
	awaitEvent(t, "missingidentity", "nowhere")
	got, err := get(t.Context(), httpClient(t, pod.NS), query(), metadata())
	if err != nil || got.status != http.StatusNotFound || got.field("error") == "" {
		t.Errorf("got %d %s, %v", got.status, got.body, err)
	}
}

// TestIdentityUnknownToAzure: ARM refuses one identity; the others go on.
func TestIdentityUnknownToAzure(t *testing.T) {
	node := shared.Nodes[0]
	sound := newIdentity(t, "")
	ghost := sound
	ghost.ID = strings.Replace(sound.ID, "/identityunknowntoazure", "/no-such-identity", 1)
	ghost.ClientID = "99999999-0000-4000-8000-000000000000"
	bind(t, "ghost", ghost, "ghost")
	bind(t, "sound", sound, "sound")
	haunted := runPod(t, node, "ghost", "ghost")
	awaitAssigned(t, runPod(t, node, "sound", "sound"))
	awaitObject(t, &v1.AzureAssignedIdentityList{}, "the refusal on the assignment", func(a *v1.AzureAssignedIdentity) bool {
		return a.Spec.Pod == "ghost" && a.Status.Status == v1.AssignedIDCreated && objects.HasCondition(a.Status.Conditions, v1.ConditionReady, v1.ReasonIdentityRefused)
	})
	deletePod(t, haunted)
}

// TestManagedMode: an operator attached the identity; NMI works alone.
func TestManagedMode(t *testing.T) {
	const index = 1
	node := shared.Nodes[index]
	identity := newIdentity(t, "")
	if err := shared.Sim.Attach(t.Context(), node.ScaleSetID(), identity.ID); err != nil {
		t.Fatal(err)
	}
	bind(t, name(t), identity, name(t))
	restart := func(ctx context.Context, mode string, flags ...string) {
		t.Helper()
		if err := shared.nmi[index].Signal(ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var err error
		if shared.nmi[index], err = node.StartNMI(ctx, mode, flags...); err != nil {
			t.Fatal(err)
		}
	}
	restart(t.Context(), "managed", "--forceNamespaced")
	t.Cleanup(func() { // the other tests want standard mode
		restart(context.WithoutCancel(t.Context()), "standard")
	})
	pod := runPod(t, node, name(t), name(t))
	token, err := sdkToken(t, pod, azidentity.ResourceID(identity.ID))
	if err != nil {
		t.Fatal(err)
	}
	wantToken(t, pod, token, identity)
}

// TestWrongCommandLine: what keeps NMI or MIC from starting is said on the last
// line of its log.
func TestWrongCommandLine(t *testing.T) {
	node := shared.Nodes[0]
	for what, test := range map[string]struct {
		start func() (*world.Process, error)
		words string
	}{
		"the port is in use": {func() (*world.Process, error) { return node.LaunchNMI(t.Context()) }, "--"},
		"no node name":       {func() (*world.Process, error) { return node.LaunchNMI(t.Context(), "--node=") }, "--node"},
		"unknown mode":       {func() (*world.Process, error) { return node.LaunchNMI(t.Context(), "--operation-mode=magic") }, "--operation-mode"},
		"unknown log format": {func() (*world.Process, error) { return node.LaunchNMI(t.Context(), "--log-format=xml") }, "want text or json"},
		"NMI without root":   {func() (*world.Process, error) { return node.LaunchNMIUnprivileged(t.Context()) }, "CAP_NET_ADMIN"},
	} {
		t.Run(what, func(t *testing.T) {
			process, err := test.start()
			if err != nil {
				t.Fatal(err)
			}
			if err := process.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(process.Log()), "\n")
			if process.ExitCode() == 0 || !strings.Contains(lines[len(lines)-1], test.words) {
				t.Errorf("exit code %d, last words %q, want %q", process.ExitCode(), lines[len(lines)-1], test.words)
			}
		})
	}
}
