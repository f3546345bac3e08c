package cluster

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/pki"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// machineBundle is where Debian and its kin keep CA certificates.
const machineBundle = "/etc/ssl/certs/ca-certificates.crt"

func writeFiles(files map[string]string) error {
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // pods read some of it
			return fmt.Errorf("making a folder: %w", err)
		}
		mode := os.FileMode(0o644)
		if filepath.Base(path) == "azure.json" || filepath.Ext(path) == ".kubeconfig" || filepath.Ext(path) == ".key" {
			mode = 0o600
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return fmt.Errorf("writing a file of the lab: %w", err)
		}
	}
	return nil
}

// writeNode writes what a node reads, before its mounts are made.
func (l *Lab) writeNode(lab topology.Lab, n topology.Node) error {
	for _, dir := range render.Folders(n, l.paths()) {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as on any machine
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	bundle, err := os.ReadFile(l.paths().Bundle())
	if err != nil {
		return fmt.Errorf("reading the CA certificates: %w", err)
	}
	files := render.Files(lab, n, l.paths())
	files[l.dir.Path(n.Name(), machineBundle)] = string(bundle)
	return writeFiles(files)
}

// writeKeys makes the keys and kubeconfigs of the cluster.
func (l *Lab) writeKeys(lab topology.Lab) error {
	authority, err := pki.NewAuthority("kubernetes")
	if err != nil {
		return err
	}
	signer, err := pki.NewSigner()
	if err != nil {
		return err
	}
	server, err := authority.Server(
		[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
		[]netip.Addr{lab.API(), topology.ServiceAPI(), netip.AddrFrom4([4]byte{127, 0, 0, 1})},
	)
	if err != nil {
		return err
	}
	files := map[string]string{
		"ca.crt": string(authority.CertPEM), "ca.key": string(authority.KeyPEM),
		"sa.pub": string(signer.Cert), "sa.key": string(signer.Key),
		"apiserver.crt": string(server.Cert), "apiserver.key": string(server.Key),
	}
	if err := l.addClients(lab, authority, files); err != nil {
		return err
	}
	placed := map[string]string{}
	for name, text := range files {
		placed[l.dir.Path("pki", name)] = text
	}
	return writeFiles(placed)
}

// addClients adds a kubeconfig for each user, and the API server's certificate
// for kubelets.
func (l *Lab) addClients(lab topology.Lab, authority *pki.Authority, files map[string]string) error {
	type client struct{ file, user, group string }
	clients := []client{
		{"admin", "admin", "system:masters"}, {"apiserver-kubelet", "kube-apiserver-kubelet", "system:masters"},
		{"controller-manager", "system:kube-controller-manager", ""}, {"scheduler", "system:kube-scheduler", ""}, {"proxy", "system:kube-proxy", ""},
	}
	for _, n := range lab.Nodes {
		clients = append(clients, client{n.Name(), "system:node:" + n.Name(), "system:nodes"})
	}
	for _, c := range clients {
		var groups []string
		if c.group != "" {
			groups = []string{c.group}
		}
		pair, err := authority.Client(c.user, groups...)
		if err != nil {
			return err
		}
		files[c.file+".kubeconfig"] = render.Kubeconfig(lab, authority.CertPEM, pair.Cert, pair.Key)
		if c.file == "apiserver-kubelet" {
			files[c.file+".crt"], files[c.file+".key"] = string(pair.Cert), string(pair.Key)
		}
	}
	return nil
}

// trustAzure waits for the simulator and writes its CA certificate in the forms
// in which programs read one.
func (l *Lab) trustAzure(ctx context.Context, lab topology.Lab) error {
	client := control.New(render.ControlURL(lab), &http.Client{Timeout: 5 * time.Second})
	if err := await(ctx, "the simulator", 30*time.Second, client.Ready); err != nil {
		return fmt.Errorf("%w; azuresim: %s; its init: %s", err, l.lastWords(render.HubName, "azuresim"), l.lastWords(render.HubName, "init"))
	}
	ca, err := client.CA(ctx)
	if err != nil {
		return fmt.Errorf("reading the simulator's CA: %w", err)
	}
	store, err := trustStore(ca)
	if err != nil {
		return err
	}
	machine, err := os.ReadFile(machineBundle)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the machine's CA certificates: %w", err)
	}
	return writeFiles(map[string]string{
		l.paths().AzureCA(): string(ca), l.paths().TrustStore(): string(store), l.paths().Bundle(): string(machine) + string(ca),
	})
}

// trustStore encodes a certificate as Java reads it.
func trustStore(ca []byte) ([]byte, error) {
	block, _ := pem.Decode(ca)
	if block == nil {
		return nil, errors.New("reading the simulator's CA: no certificate in it")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the simulator's CA: %w", err)
	}
	store, err := pkcs12.Modern.EncodeTrustStore([]*x509.Certificate{cert}, render.TrustStorePassword)
	if err != nil {
		return nil, fmt.Errorf("encoding the trust store: %w", err)
	}
	return store, nil
}
