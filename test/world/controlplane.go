package world

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

func (w *World) apiURL() string { return "https://" + controlAddr.String() + ":6443" }

// startControlPlane runs etcd and the API server in their namespace, with RBAC
// and without the admission plug-in that waits for a controller to make service
// accounts, since there is no controller manager.
func (w *World) startControlPlane(ctx context.Context) error {
	var err error
	if w.pki, err = newPKI(w.path("pki")); err != nil {
		return err
	}
	if err := w.pki.server("apiserver", controlAddr.String()); err != nil {
		return err
	}
	if err := w.pki.client("admin", "system:masters"); err != nil {
		return err
	}
	w.Config = &rest.Config{
		Host: w.apiURL(), Dial: w.Control.DialContext, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: w.pki.path("ca.crt"), CertFile: w.pki.path("admin.crt"), KeyFile: w.pki.path("admin.key")},
	}
	if w.etcd, err = w.start(ctx, command{
		name: "etcd", ns: w.Control, path: filepath.Join(w.options.Kubernetes, "etcd"),
		args: []string{"--data-dir=" + w.path("etcd"), "--unsafe-no-fsync", "--log-level=warn"},
	}); err != nil {
		return err
	}
	if err := w.StartAPIServer(ctx); err != nil {
		return err
	}
	w.Kube, err = client.NewWithWatch(w.Config, client.Options{Scheme: env.Scheme()})
	return err
}

// StartAPIServer starts the API server and waits until it is ready.
func (w *World) StartAPIServer(ctx context.Context) error {
	var err error
	w.apiserver, err = w.start(ctx, command{
		name: "kube-apiserver", ns: w.Control, path: filepath.Join(w.options.Kubernetes, "kube-apiserver"),
		args: []string{
			"--etcd-servers=http://127.0.0.1:2379",
			"--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address=" + controlAddr.String(),
			"--tls-cert-file=" + w.pki.path("apiserver.crt"), "--tls-private-key-file=" + w.pki.path("apiserver.key"),
			"--client-ca-file=" + w.pki.path("ca.crt"),
			"--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
			"--service-account-issuer=" + w.apiURL(), "--api-audiences=" + w.apiURL(),
			"--service-account-key-file=" + w.pki.path("sa.pub"), "--service-account-signing-key-file=" + w.pki.path("sa.key"),
			"--service-cluster-ip-range=10.96.0.0/16",
		},
	})
	if err != nil {
		return err
	}
	transport, err := rest.TransportFor(w.Config)
	if err != nil {
		return fmt.Errorf("making a client of the API server: %w", err)
	}
	probe := func() error { return expectOK(ctx, &http.Client{Transport: transport}, w.apiURL()+"/readyz") }
	return await(ctx, "the API server", w.apiserver.whileRunning(probe))
}

// StopAPIServer ends the API server; etcd goes on.
func (w *World) StopAPIServer(ctx context.Context) error {
	return w.apiserver.Signal(ctx, syscall.SIGKILL)
}
