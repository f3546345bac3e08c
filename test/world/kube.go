package world

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// Where the published manifests install, and whom.
const (
	SystemNamespace = "default"
	micAccount      = "aad-pod-identity-mic"
	nmiAccount      = "aad-pod-identity-nmi"
)

// Apply creates every object of a manifest; see [objects.Apply].
func (w *World) Apply(ctx context.Context, manifest string) error {
	return objects.Apply(ctx, w.Kube, manifest)
}

// install applies what a user does, but for the workloads, which nobody here would
// run.
func (w *World) install(ctx context.Context) error {
	crds, err := filepath.Glob(filepath.Join(env.Root(), "charts", "aad-pod-identity", "crds", "*.yaml"))
	if err != nil {
		return fmt.Errorf("listing custom resource definitions: %w", err)
	}
	for _, file := range crds {
		if err := w.applyFile(ctx, file); err != nil {
			return err
		}
	}
	if err := w.awaitEstablished(ctx, len(crds)); err != nil {
		return err
	}
	for _, name := range []string{"deployment-rbac.yaml", "mic-exception.yaml"} {
		if err := w.applyFile(ctx, filepath.Join(env.Root(), "deploy", "infra", name)); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) applyFile(ctx context.Context, file string) error {
	text, err := os.ReadFile(file) //nolint:gosec // a file of this project
	if err != nil {
		return fmt.Errorf("reading a manifest: %w", err)
	}
	return objects.Apply(ctx, w.Kube, string(text), "DaemonSet", "Deployment")
}

// awaitEstablished waits until the API server serves every kind of the group.
func (w *World) awaitEstablished(ctx context.Context, kinds int) error {
	lists := []client.ObjectList{
		&v1.AzureIdentityList{}, &v1.AzureIdentityBindingList{}, &v1.AzureAssignedIdentityList{},
		&v1.AzurePodIdentityExceptionList{}, &v1.AzureIdentityAttachmentList{},
		&v1.AzureIdentityNodeReportList{},
	}
	if len(lists) != kinds {
		return fmt.Errorf("the chart ships %d custom resource definitions; %d are known here", kinds, len(lists))
	}
	// The first list of each kind takes the API server a second; they run at once.
	var group errgroup.Group
	for _, list := range lists {
		group.Go(func() error {
			return await(ctx, fmt.Sprintf("%T", list), func() error { return w.Kube.List(ctx, list) })
		})
	}
	return group.Wait()
}

// kubeconfig writes a kubeconfig with a token of a service account, once: a
// program that is started again finds it while the API server is away, as a pod
// finds its projected token.
func (w *World) kubeconfig(ctx context.Context, serviceAccount, file string) (string, error) {
	path := w.path(file + ".kubeconfig")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: SystemNamespace, Name: serviceAccount}}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{w.apiURL()}}}
	if err := w.Kube.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("requesting a token for service account %s: %w", serviceAccount, err)
	}
	ca, err := os.ReadFile(w.pki.path("ca.crt"))
	if err != nil {
		return "", fmt.Errorf("reading the API server's CA: %w", err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["world"] = &clientcmdapi.Cluster{Server: w.apiURL(), CertificateAuthorityData: ca}
	config.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	config.Contexts["world"] = &clientcmdapi.Context{Cluster: "world", AuthInfo: "user"}
	config.CurrentContext = "world"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return "", fmt.Errorf("writing the kubeconfig of %s: %w", serviceAccount, err)
	}
	return path, nil
}
