// Package env gives tests a real Kubernetes API server and etcd, with the custom
// resource definitions that the chart ships.
//
// It must not hold fixtures of any one package.
package env

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	apiruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Scheme returns a scheme with the kinds of Kubernetes and of this project.
func Scheme() *apiruntime.Scheme {
	scheme := apiruntime.NewScheme()
	for _, add := range []func(*apiruntime.Scheme) error{clientgoscheme.AddToScheme, v1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(fmt.Sprintf("registering %v: %v", schema.GroupVersion{}, err))
		}
	}
	return scheme
}

// Root returns the root folder of the project.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Assets returns the folder of the kube-apiserver and etcd programs:
// KUBEBUILDER_ASSETS, or where `make assets` builds them.
func Assets() string {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		return dir
	}
	return filepath.Join(Root(), ".cache", "kubernetes")
}

// Cluster is a running API server with its etcd.
type Cluster struct {
	// Config has every right.
	Config *rest.Config
	// EtcdURL is the client address of etcd, for what the API would refuse.
	EtcdURL string
}

// Start starts an API server of the test's own, with all custom resource
// definitions, and returns a configuration with every right. It ends with the
// test.
func Start(t testing.TB) *rest.Config {
	t.Helper()
	return StartCluster(t).Config
}

// StartCluster is [Start] for tests that need etcd too.
func StartCluster(t testing.TB) Cluster {
	t.Helper()
	environment := &envtest.Environment{
		BinaryAssetsDirectory: Assets(),
		CRDDirectoryPaths:     []string{filepath.Join(Root(), "charts", "aad-pod-identity", "crds")},
		ErrorIfCRDPathMissing: true,
		Scheme:                Scheme(),
		// For a machine that is busy with other tests.
		ControlPlaneStartTimeout: time.Minute,
	}
	t.Cleanup(func() {
		if err := environment.Stop(); err != nil {
			t.Errorf("stopping the API server: %v", err)
		}
	})
	config, err := environment.Start()
	if err != nil {
		t.Fatalf("starting the API server from %s: %v (run make assets)", environment.BinaryAssetsDirectory, err)
	}
	return Cluster{Config: config, EtcdURL: environment.ControlPlane.Etcd.URL.String()}
}
