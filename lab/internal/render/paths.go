// Package render turns the plan of a lab into what its programs read: command
// lines, configuration files, kubeconfigs, manifests and the specs of its nodes.
//
// It is pure: plan and paths in, text out. It must not read or write a file.
package render

import (
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// Paths say where things are on the machine. Nodes see them at the same place.
type Paths struct {
	// Programs is the folder of containerd, coredns and azuresim.
	Programs string
	// CNI is the folder of the CNI plugins.
	CNI string
	// Kubernetes is the folder of the Kubernetes programs and etcd.
	Kubernetes string
	// Minor is the minor version of the Kubernetes programs there: 36 of v1.36.3.
	Minor int
	// Runc is the path of runc, which is the machine's own.
	Runc string
	// State is the lab's folder.
	State string
}

// The folders in the lab's folder.
func (p Paths) pki(file string) string  { return filepath.Join(p.State, "pki", file) }
func (p Paths) node(name string) string { return filepath.Join(p.State, name) }

// Kubeconfig is the file with which a component or user reaches the API server.
func (p Paths) Kubeconfig(user string) string { return p.pki(user + ".kubeconfig") }

// AzureCA is the certificate of the simulated Azure's CA.
func (p Paths) AzureCA() string { return filepath.Join(p.State, "azure-ca.pem") }

// Bundle is the machine's CA certificates and that of the simulated Azure.
func (p Paths) Bundle() string { return filepath.Join(p.State, "ca-bundle.pem") }

// TrustStore is [Paths.AzureCA] as Java reads it.
func (p Paths) TrustStore() string { return filepath.Join(p.State, "azure-ca.p12") }

// SimulatorState is the document that the simulator starts from.
func (p Paths) SimulatorState() string { return filepath.Join(p.State, "azure.yaml") }

// toYAML encodes maps and structs of this package, which always can be.
func toYAML(v any) string {
	text, err := yaml.Marshal(v)
	if err != nil {
		panic(err) // a value of this package that has no YAML is a mistake in it
	}
	return string(text)
}

type object = map[string]any
