package chart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// cluster is a real API server with the namespaces that the chart writes to.
type cluster struct {
	config *rest.Config
	kube   client.WithWatch
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	config := env.Start(t)
	kube, err := client.NewWithWatch(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	// The API server makes its own namespaces a moment after its start.
	for _, name := range []string{namespace, "default", "kube-system"} {
		if err := kube.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	return cluster{config, kube}
}

// kubeconfig writes a file with every right, for helm.
func (c cluster) kubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.writeConfig(file, &clientcmdapi.AuthInfo{ClientCertificateData: c.config.CertData, ClientKeyData: c.config.KeyData}); err != nil {
		t.Fatal(err)
	}
	return file
}

// writeConfig writes a kubeconfig for a user.
func (c cluster) writeConfig(file string, user *clientcmdapi.AuthInfo) error {
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: c.config.Host, CertificateAuthorityData: c.config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": user},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, file)
}

// exists reports whether a named object is there.
func (c cluster) exists(t *testing.T, object client.Object, namespace, name string) bool {
	t.Helper()
	err := c.kube.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, object)
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func TestAPIServer(t *testing.T) {
	c := newCluster(t)
	t.Run("accepts every object, with no unknown field", c.acceptsObjects)
	t.Run("accepts deploy/infra", c.acceptsDeploy)
	t.Run("the tutorials' lines, and a change of mode", c.tutorials)
	t.Run("MIC starts as rendered, with its rights", c.runsMIC)
	t.Run("NMI reads with its rights", c.readsAsNMI)
	t.Run("nobody has more rights", c.limits)
	t.Run("the startup taint alone may be taken from a node", c.startupTaint)
	t.Run("NMI reports of its own node only", c.reports)
	t.Run("helm uninstall ends the agents first", c.uninstalls)
}

// dryRun creates an object on the server without keeping it, refusing unknown and
// duplicate fields.
func (c cluster) dryRun(t *testing.T, object *unstructured.Unstructured) {
	t.Helper()
	strict := client.WithFieldValidation(c.kube, metav1.FieldValidationStrict)
	if err := strict.Create(t.Context(), object.DeepCopy(), client.DryRunAll); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
	}
}

func (c cluster) acceptsObjects(t *testing.T) {
	for name, values := range accepted() {
		t.Run(name, func(t *testing.T) {
			for _, object := range render(t, values...) {
				// The election's namespace is the user's to have.
				c.dryRun(t, object)
			}
		})
	}
}

func (c cluster) acceptsDeploy(t *testing.T) {
	for file, want := range map[string]int{"deployment-rbac.yaml": 22, "managed-mode-deployment.yaml": 12, "mic-exception.yaml": 2, "noazurejson/deployment-rbac.yaml": 22} {
		text, err := os.ReadFile(filepath.Join(env.Root(), "deploy", "infra", filepath.FromSlash(file)))
		if err != nil {
			t.Fatal(err)
		}
		objects := parse(t, string(text))
		if len(objects) != want {
			t.Errorf("%s has %d objects, want %d", file, len(objects), want)
		}
		for _, object := range objects {
			c.dryRun(t, object)
			if strings.Contains(strings.Join(keys(object.GetLabels()), " "), "helm.sh/") || object.GetLabels()["app.kubernetes.io/managed-by"] != "" {
				t.Errorf("%s: %s says that helm manages it", file, object.GetName())
			}
		}
	}
}

func keys(labels map[string]string) []string {
	var out []string
	for key := range labels {
		out = append(out, key)
	}
	return out
}

// tutorials installs as the tutorials of AAD Pod Identity do, changes the mode,
// and uninstalls: what users wrote stays.
func (c cluster) tutorials(t *testing.T) {
	kubeconfig := c.kubeconfig(t)
	run := func(args ...string) string {
		out, err := helm(t, append(args, "--kubeconfig="+kubeconfig)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("install", "aad-pod-identity", chart())
	identity := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: "demo", Namespace: "default"}, Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID}}
	if err := c.kube.Create(t.Context(), identity); err != nil {
		t.Fatal(err)
	}
	c.expect(t, true, true)
	run("upgrade", "aad-pod-identity", chart(), "--set=operationMode=managed")
	c.expect(t, false, true)
	run("upgrade", "aad-pod-identity", chart(), "--set=operationMode=standard")
	c.expect(t, true, true)
	run("uninstall", "aad-pod-identity", "--no-hooks")
	c.expect(t, false, false)
	if !c.exists(t, &v1.AzureIdentity{}, "default", "demo") {
		t.Error("helm uninstall took a user's AzureIdentity")
	}

	notes := run("install", "aad-pod-identity", chart(), "--set", "nmi.enableConntrackDeletion=true")
	c.expect(t, true, true)
	for _, words := range []string{"no effect any more and can go: nmi.enableConntrackDeletion\n", "WARNING: image.repository is localhost/aad-pod-identity"} {
		if !strings.Contains(notes, words) {
			t.Errorf("the notes do not say %q:\n%s", words, notes)
		}
	}
	notes = run("upgrade", "aad-pod-identity", chart(), "--set=image.repository=registry.example")
	for _, words := range []string{"no effect", "WARNING"} {
		if strings.Contains(notes, words) {
			t.Errorf("the notes say %q without a cause:\n%s", words, notes)
		}
	}
	run("uninstall", "aad-pod-identity", "--no-hooks")
}

func (c cluster) expect(t *testing.T, mic, nmi bool) {
	t.Helper()
	if got := c.exists(t, &appsv1.Deployment{}, "default", "aad-pod-identity-mic"); got != mic {
		t.Errorf("MIC is there %t, want %t", got, mic)
	}
	if got := c.exists(t, &appsv1.DaemonSet{}, "default", "aad-pod-identity-nmi"); got != nmi {
		t.Errorf("NMI is there %t, want %t", got, nmi)
	}
}
