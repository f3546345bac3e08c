package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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

// cluster is an API server and etcd, sized for the large scene, with the rights
// that the shipped manifests give MIC.
type cluster struct {
	environment *envtest.Environment
	kube        client.Client
	config      *rest.Config
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

func startCluster(ctx context.Context, dir string) (*cluster, error) {
	c := &cluster{dir: dir}
	policy := filepath.Join(dir, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, fmt.Errorf("writing the audit policy: %w", err)
	}
	c.environment = &envtest.Environment{
		BinaryAssetsDirectory: env.Assets(), CRDDirectoryPaths: []string{filepath.Join(env.Root(), "charts", "aad-pod-identity", "crds")},
		ErrorIfCRDPathMissing: true, Scheme: env.Scheme(), ControlPlaneStartTimeout: 2 * time.Minute,
	}
	server := c.environment.ControlPlane.GetAPIServer().Configure()
	server.Set("audit-policy-file", policy).Set("audit-log-path", c.auditLog())
	// What a managed control plane of that size has.
	server.Set("max-requests-inflight", "1600").Set("max-mutating-requests-inflight", "800").Set("event-ttl", "10m")
	c.environment.ControlPlane.Etcd = &envtest.Etcd{}
	c.environment.ControlPlane.Etcd.Configure().Set("quota-backend-bytes", "8589934592")
	config, err := c.environment.Start()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the API server from %s: %w (run make assets)", env.Assets(), err), c.close())
	}
	c.config = rest.CopyConfig(config)
	c.config.QPS = -1
	if c.kube, err = client.New(c.config, client.Options{Scheme: env.Scheme()}); err != nil {
		return nil, errors.Join(err, c.close())
	}
	manifest, err := os.ReadFile(filepath.Join(env.Root(), "deploy", "infra", "deployment-rbac.yaml"))
	if err == nil {
		err = objects.Apply(ctx, c.kube, string(manifest))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("installing the manifests: %w", err), c.close())
	}
	return c, nil
}

func (c *cluster) close() error {
	if err := c.environment.Stop(); err != nil {
		return fmt.Errorf("stopping the API server: %w", err)
	}
	return nil
}

func (c *cluster) auditLog() string { return filepath.Join(c.dir, "audit.log") }

// kubeconfig writes a kubeconfig for MIC's own ServiceAccount.
func (c *cluster) kubeconfig(ctx context.Context) (string, error) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: micNamespace, Name: micAccount}}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(7200))}}
	if err := c.kube.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("asking for MIC's token: %w", err)
	}
	out := clientcmdapi.NewConfig()
	out.Clusters["bench"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	out.AuthInfos["mic"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	out.Contexts["mic"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "mic"}
	out.CurrentContext = "mic"
	file := filepath.Join(c.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*out, file); err != nil {
		return "", fmt.Errorf("writing MIC's kubeconfig: %w", err)
	}
	return file, nil
}

// writes counts requests that are no reads, by verb, resource and, where the API
// server refused them, its status code.
type writes map[string]int

const refusal = ": "

func (w writes) total() int {
	sum := 0
	for _, n := range w {
		sum += n
	}
	return sum
}

// refused tells the refused ones.
func (w writes) refused() string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(w)) {
		if strings.Contains(key, refusal) {
			out = append(out, fmt.Sprintf("%d × %s", w[key], key))
		}
	}
	if len(out) == 0 {
		return "none refused"
	}
	return "refused: " + strings.Join(out, ", ")
}

// add counts the whole lines of an audit log and returns how long they are. The
// renewals of a Lease do not count.
func (w writes) add(log []byte, user string) (read int) {
	for {
		line, _, whole := bytes.Cut(log[read:], []byte("\n"))
		if !whole {
			return read
		}
		read += len(line) + 1
		var event struct {
			Verb      string
			User      struct{ Username string }
			ObjectRef struct{ Resource, Subresource string }
			Status    struct{ Code int } `json:"responseStatus"`
		}
		if json.Unmarshal(line, &event) != nil || event.User.Username != user || event.ObjectRef.Resource == "leases" {
			continue
		}
		switch event.Verb {
		case "get", "list", "watch":
			continue
		}
		key := event.Verb + " " + event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			key += "/" + event.ObjectRef.Subresource
		}
		if event.Status.Code >= 400 {
			key += refusal + strconv.Itoa(event.Status.Code)
		}
		w[key]++
	}
}

// written returns what MIC wrote since the last call.
func (c *cluster) written() (writes, error) {
	out := writes{}
	log, err := os.ReadFile(c.auditLog())
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	c.audited += int64(out.add(log[c.audited:], micUser))
	return out, nil
}
