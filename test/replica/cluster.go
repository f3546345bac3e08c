// Package replica runs the controller as the process that ships, one or more of
// it, against a real API server with the shipped rights and an Azure simulated in
// this process. It is for programs that try MIC for minutes, with figures or with
// violence.
//
// It must not hold a scene of any one of them.
package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

const (
	micNamespace = "default"
	micAccount   = "aad-pod-identity-mic"
	micUser      = "system:serviceaccount:" + micNamespace + ":" + micAccount
)

// Cluster is an API server and etcd, sized for the large scene, with the rights
// that the shipped manifests give MIC.
type Cluster struct {
	environment *envtest.Environment
	Kube        client.Client
	Config      *rest.Config
	dir         string // for logs and configuration
	audited     int64  // bytes of the audit log that were read
}

// auditPolicy makes the API server log what MIC asks, and nothing else.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: ["` + micUser + `"]}
- {level: None}
`

// StartCluster starts one that ends with Close; its logs are in the folder.
func StartCluster(ctx context.Context, dir string) (*Cluster, error) {
	c := &Cluster{dir: dir}
	policy := filepath.Join(dir, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, fmt.Errorf("writing the audit policy: %w", err)
	}
	c.environment = &envtest.Environment{
		BinaryAssetsDirectory: env.Assets(), CRDDirectoryPaths: []string{filepath.Join(env.Root(), "charts", "aad-pod-identity", "crds")},
		ErrorIfCRDPathMissing: true, Scheme: env.Scheme(), ControlPlaneStartTimeout: 2 * time.Minute,
	}
	server := c.environment.ControlPlane.GetAPIServer().Configure()
	server.Set("audit-policy-file", policy).Set("audit-log-path", c.AuditLog())
	// What a managed control plane of that size has.
	server.Set("max-requests-inflight", "1600").Set("max-mutating-requests-inflight", "800").Set("event-ttl", "10m")
	c.environment.ControlPlane.Etcd = &envtest.Etcd{}
	c.environment.ControlPlane.Etcd.Configure().Set("quota-backend-bytes", "8589934592")
	config, err := c.environment.Start()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the API server from %s: %w (run make assets)", env.Assets(), err), c.Close())
	}
	c.Config = rest.CopyConfig(config)
	c.Config.QPS = -1
	if c.Kube, err = client.New(c.Config, client.Options{Scheme: env.Scheme()}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	manifest, err := os.ReadFile(filepath.Join(env.Root(), "deploy", "infra", "deployment-rbac.yaml"))
	if err == nil {
		err = objects.Apply(ctx, c.Kube, string(manifest))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("installing the manifests: %w", err), c.Close())
	}
	return c, nil
}

// Close ends the API server and etcd.
func (c *Cluster) Close() error {
	if err := c.environment.Stop(); err != nil {
		return fmt.Errorf("stopping the API server: %w", err)
	}
	return nil
}

// AuditLog is the file in which the API server notes what MIC asks.
func (c *Cluster) AuditLog() string { return filepath.Join(c.dir, "audit.log") }

// kubeconfig writes a kubeconfig for MIC's own ServiceAccount.
func (c *Cluster) kubeconfig(ctx context.Context) (string, error) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: micNamespace, Name: micAccount}}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(7200))}}
	if err := c.Kube.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("asking for MIC's token: %w", err)
	}
	out := clientcmdapi.NewConfig()
	out.Clusters["bench"] = &clientcmdapi.Cluster{Server: c.Config.Host, CertificateAuthorityData: c.Config.CAData}
	out.AuthInfos["mic"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	out.Contexts["mic"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "mic"}
	out.CurrentContext = "mic"
	file := filepath.Join(c.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*out, file); err != nil {
		return "", fmt.Errorf("writing MIC's kubeconfig: %w", err)
	}
	return file, nil
}

// Written returns what MIC wrote since the last call.
func (c *Cluster) Written() (Writes, error) {
	out := Writes{}
	log, err := os.ReadFile(c.AuditLog())
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	c.audited += int64(out.add(log[c.audited:], micUser))
	return out, nil
}
