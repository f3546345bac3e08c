package render

import (
	_ "embed"
	"encoding/base64"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

//go:embed manifests/dns.yaml
var dnsManifest string

//go:embed manifests/base.yaml
var baseManifest string

// Kubeconfig is a file with which the owner of a certificate reaches the API
// server. All three are PEM.
func Kubeconfig(lab topology.Lab, ca, cert, key []byte) string {
	name := topology.LinkName(lab.Number)
	return toYAML(object{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []object{{"name": name, "cluster": object{"server": APIURL(lab), "certificate-authority-data": base64.StdEncoding.EncodeToString(ca)}}},
		"users": []object{{"name": name, "user": object{
			"client-certificate-data": base64.StdEncoding.EncodeToString(cert), "client-key-data": base64.StdEncoding.EncodeToString(key),
		}}},
		"contexts": []object{{"name": name, "context": object{"cluster": name, "user": name}}},
	})
}

// Manifests are what every lab installs: DNS, the simulated Azure's CA as a
// ConfigMap, and the right of everybody to read the issuer's keys, which Entra
// makes use of.
func Manifests(lab topology.Lab, azureCA []byte) string {
	values := strings.NewReplacer(
		"${DNS_IMAGE}", DNSImage, "${DNS_ADDRESS}", topology.ServiceDNS().String(), "${UPSTREAM}", lab.Hub().String(),
	)
	var out strings.Builder
	out.WriteString(values.Replace(dnsManifest))
	out.WriteString("---\n" + baseManifest)
	for _, namespace := range []string{"default", "kube-system"} {
		out.WriteString("---\n" + toYAML(object{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": "lab-azure-ca", "namespace": namespace},
			"data": object{"ca.crt": string(azureCA)},
		}))
	}
	return out.String()
}

// Resolv is the resolv.conf of a pod in a namespace.
func Resolv(namespace string) string {
	return "search " + namespace + ".svc.cluster.local svc.cluster.local cluster.local\n" +
		"nameserver " + topology.ServiceDNS().String() + "\noptions ndots:5\n"
}

// Trust are the variables by which programs find the CA of the simulated Azure:
// Go, OpenSSL, curl, Python, git, Node.js and Java.
func Trust(p Paths) []string {
	bundle := p.Bundle()
	return []string{
		"SSL_CERT_FILE=" + bundle, "CURL_CA_BUNDLE=" + bundle, "REQUESTS_CA_BUNDLE=" + bundle, "GIT_SSL_CAINFO=" + bundle,
		"NODE_EXTRA_CA_CERTS=" + p.AzureCA(),
		"JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=" + p.TrustStore() + " -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=" + TrustStorePassword,
	}
}

// TrustStorePassword protects nothing: Java wants one.
const TrustStorePassword = "changeit"
