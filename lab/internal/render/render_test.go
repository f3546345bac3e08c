package render_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

func plan(t *testing.T, nodes int) topology.Lab {
	t.Helper()
	lab, err := topology.New(4, nodes)
	if err != nil {
		t.Fatal(err)
	}
	return lab
}

func paths() render.Paths {
	return render.Paths{Programs: "/cache/bin", CNI: "/cache/cni", Kubernetes: "/cache/kubernetes", Minor: 36, Runc: "/usr/sbin/runc", State: "/srv/lab"}
}

// file returns a file of a node, decoded.
func file(t *testing.T, lab topology.Lab, node int, path string) map[string]any {
	t.Helper()
	return decoded(t, render.Files(lab, lab.Nodes[node-1], paths()), path)
}

func decoded(t *testing.T, files map[string]string, path string) map[string]any {
	t.Helper()
	text, ok := files[path]
	if !ok {
		t.Fatalf("there is no %s", path)
	}
	var v map[string]any
	if err := sigsyaml.UnmarshalStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPodsAreLinkedByLayout(t *testing.T) {
	lab := plan(t, 2)
	for node, want := range map[int]string{
		1: `[{"bridge":"cni0","hairpinMode":true,"ipMasq":false,"ipam":{"dataDir":"/var/lib/cni/networks","ranges":[[{"subnet":"10.104.101.0/24"}]],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"type":"bridge"},{"capabilities":{"portMappings":true},"snat":true,"type":"portmap"}]`,
		2: `[{"ipMasq":false,"ipam":{"dataDir":"/var/lib/cni/networks","ranges":[[{"subnet":"10.104.102.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"type":"host-local"},"type":"ptp"},{"capabilities":{"portMappings":true},"snat":false,"type":"portmap"}]`,
	} {
		config := file(t, lab, node, "/srv/lab/"+lab.Nodes[node-1].Name()+"/config/cni/10-lab.conflist")
		got, err := json.Marshal(config["plugins"])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("node %d (-want +got):\n%s", node, diff)
		}
	}
}

func TestProxyDiffersByNode(t *testing.T) {
	lab := plan(t, 2)
	iptables := file(t, lab, 1, "/srv/lab/node1/config/kube-proxy.yaml")
	if diff := cmp.Diff(map[string]any{"localhostNodePorts": true}, iptables["iptables"]); iptables["mode"] != "iptables" || diff != "" {
		t.Errorf("node 1: %v", iptables)
	}
	nftables := file(t, lab, 2, "/srv/lab/node2/config/kube-proxy.yaml")
	if nftables["mode"] != "nftables" || nftables["iptables"] != nil {
		t.Errorf("node 2: %v", nftables)
	}
	if iptables["clusterCIDR"] != "10.104.96.0/19" {
		t.Errorf("cluster range %v", iptables["clusterCIDR"])
	}
}

// TestOlderKubernetes is given what it knows: a setting that it does not know is
// ignored at best.
func TestOlderKubernetes(t *testing.T) {
	lab := plan(t, 2)
	type settings struct{ CgroupV1, GateOfIPTables, GateOfNFTables any }
	gate := map[string]any{"NFTablesProxyMode": true}
	for minor, want := range map[int]settings{30: {nil, nil, gate}, 31: {CgroupV1: false}, 35: {CgroupV1: false}, 36: {CgroupV1: false}} {
		t.Run(fmt.Sprintf("1.%d", minor), func(t *testing.T) {
			p := paths()
			p.Minor = minor
			first, second := render.Files(lab, lab.Nodes[0], p), render.Files(lab, lab.Nodes[1], p)
			got := settings{CgroupV1: decoded(t, first, "/srv/lab/node1/config/kubelet.yaml")["failCgroupV1"]}
			got.GateOfIPTables = decoded(t, first, "/srv/lab/node1/config/kube-proxy.yaml")["featureGates"]
			got.GateOfNFTables = decoded(t, second, "/srv/lab/node2/config/kube-proxy.yaml")["featureGates"]
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestKubeletIsAMachineOfAzure(t *testing.T) {
	lab := plan(t, 3)
	for i, n := range lab.Nodes {
		got := file(t, lab, i+1, "/srv/lab/"+n.Name()+"/config/kubelet.yaml")
		if got["providerID"] != n.ProviderID() || got["cgroupRoot"] != "/"+n.Cgroup() {
			t.Errorf("%s: providerID %v, cgroupRoot %v", n.Name(), got["providerID"], got["cgroupRoot"])
		}
	}
}

func TestAzureJSON(t *testing.T) {
	lab := plan(t, 3)
	for node, want := range map[int][2]string{1: {"vmss", "aks-pool1-12345678-vmss"}, 2: {"vmss", "aks-pool2-12345678-vmss"}, 3: {"standard", ""}} {
		got := file(t, lab, node, "/srv/lab/"+lab.Nodes[node-1].Name()+"/etc/kubernetes/azure.json")
		if got["vmType"] != want[0] || got["primaryScaleSetName"] != want[1] {
			t.Errorf("node %d is %v of %v", node, got["vmType"], got["primaryScaleSetName"])
		}
		if got["userAssignedIdentityID"] != topology.AgentPoolClientID || got["useManagedIdentityExtension"] != true {
			t.Errorf("node %d has no identity of its own: %v", node, got)
		}
	}
}

func TestContainerdPullsNothingOfItsOwn(t *testing.T) {
	lab := plan(t, 1)
	text := render.Files(lab, lab.Nodes[0], paths())["/srv/lab/node1/config/containerd.toml"]
	for _, want := range []string{
		"sandbox = '" + render.PauseImage + "'", "restrict_oom_score_adj = true", "BinaryName = '/usr/sbin/runc'",
		"bin_dirs = ['/cache/cni']", "conf_dir = '/srv/lab/node1/config/cni'", "root = '/var/lib/containerd'",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// TestSpecs are read back as the first process of a node reads them.
func TestSpecs(t *testing.T) {
	lab := plan(t, 2)
	for name, c := range map[string]struct {
		spec     nodeinit.Spec
		programs []string
	}{
		"the first node has the control plane": {
			render.NodeSpec(lab, lab.Nodes[0], paths()),
			[]string{"containerd", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"},
		},
		"others have not":      {render.NodeSpec(lab, lab.Nodes[1], paths()), []string{"containerd", "kubelet", "kube-proxy"}},
		"Azure has no kubelet": {render.HubSpec(lab, paths()), []string{"azuresim", "dns"}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := json.Marshal(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := nodeinit.Read(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			var programs []string
			for _, p := range spec.Programs {
				programs = append(programs, p.Name)
			}
			if diff := cmp.Diff(c.programs, programs); diff != "" {
				t.Errorf("programs (-want +got):\n%s", diff)
			}
			if spec.Settings["net/ipv4/ip_forward"] != "1" {
				t.Error("does not forward")
			}
		})
	}
}

func TestAPIServerGuardsNodes(t *testing.T) {
	lab := plan(t, 1)
	spec := render.NodeSpec(lab, lab.Nodes[0], paths())
	i := slices.IndexFunc(spec.Programs, func(p nodeinit.Program) bool { return p.Name == "kube-apiserver" })
	for _, want := range []string{
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--advertise-address=10.104.0.11",
		"--service-account-issuer=https://10.104.0.11:6443", "--client-ca-file=/srv/lab/pki/ca.crt",
	} {
		if !slices.Contains(spec.Programs[i].Args, want) {
			t.Errorf("no %s in %v", want, spec.Programs[i].Args)
		}
	}
}

// TestMachineSettingsAreCovered lists what a kubelet writes to the machine.
func TestMachineSettingsAreCovered(t *testing.T) {
	lab := plan(t, 1)
	covered := render.NodeSpec(lab, lab.Nodes[0], paths()).Covered
	for _, key := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	} {
		if covered[key] == "" {
			t.Errorf("%s is not covered", key)
		}
	}
}

// TestSimulatorStateLoads gives the document to the simulator itself.
func TestSimulatorStateLoads(t *testing.T) {
	lab := plan(t, 6)
	doc, err := model.Parse([]byte(render.SimulatorState(lab)))
	if err != nil {
		t.Fatal(err)
	}
	sim, err := azuresim.New(azuresim.Config{State: doc})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range lab.Nodes {
		for _, addr := range []string{n.Addr().String(), n.Pods().Addr().Next().String()} {
			got, ok := sim.State.NodeAt(mustAddr(t, addr))
			if !ok || got.Name != n.Name() {
				t.Errorf("%s is asked from as %q, want %s", addr, got.Name, n.Name())
			}
		}
	}
	if len(doc.ScaleSets) != 2 || len(doc.VirtualMachines) != 1 {
		t.Errorf("%d scale sets and %d virtual machines, want 2 and 1", len(doc.ScaleSets), len(doc.VirtualMachines))
	}
	for _, s := range slices.Concat(doc.ScaleSets, doc.VirtualMachines) {
		if diff := cmp.Diff([]string{topology.AgentPool}, s.UserAssigned); diff != "" {
			t.Errorf("identities of %s (-want +got):\n%s", s.ID, diff)
		}
	}
}

func TestManifestsAreStrict(t *testing.T) {
	lab := plan(t, 1)
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(render.Manifests(lab, []byte("CERT"))), 4096)
	kinds := map[string]int{}
	for {
		var raw runtime.RawExtension
		if err := decoder.Decode(&raw); err != nil {
			break
		}
		object, kind, err := strict.Decode(raw.Raw, nil, nil)
		if err != nil {
			t.Fatalf("%v in %s", err, raw.Raw)
		}
		kinds[kind.Kind]++
		switch o := object.(type) {
		case *corev1.Service:
			if o.Spec.ClusterIP != "10.96.0.10" {
				t.Errorf("DNS is at %s", o.Spec.ClusterIP)
			}
		case *appsv1.Deployment:
			if o.Spec.Template.Spec.Containers[0].Image != render.DNSImage {
				t.Errorf("DNS is %s", o.Spec.Template.Spec.Containers[0].Image)
			}
		case *corev1.ConfigMap:
			if strings.Contains(o.Data["Corefile"], "${") || (o.Name == "coredns" && !strings.Contains(o.Data["Corefile"], "forward . 10.104.0.1\n")) {
				t.Errorf("Corefile %s", o.Data["Corefile"])
			}
		}
	}
	want := map[string]int{"ServiceAccount": 1, "ClusterRole": 1, "ClusterRoleBinding": 2, "ConfigMap": 3, "Deployment": 1, "Service": 1}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

func TestKubeconfig(t *testing.T) {
	config, err := clientcmd.Load([]byte(render.Kubeconfig(plan(t, 1), []byte("CA"), []byte("CERT"), []byte("KEY"))))
	if err != nil {
		t.Fatal(err)
	}
	current := config.Contexts[config.CurrentContext]
	if got := config.Clusters[current.Cluster]; got.Server != "https://10.104.0.11:6443" || string(got.CertificateAuthorityData) != "CA" {
		t.Errorf("cluster %+v", got)
	}
	if got := config.AuthInfos[current.AuthInfo]; string(got.ClientCertificateData) != "CERT" || string(got.ClientKeyData) != "KEY" {
		t.Error("not the user's certificate")
	}
}

func TestNamesResolveAsInThePod(t *testing.T) {
	want := "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
	if diff := cmp.Diff(want, render.Resolv("shop")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTrustReachesEveryLanguage(t *testing.T) {
	var names []string
	for _, variable := range render.Trust(paths()) {
		name, value, _ := strings.Cut(variable, "=")
		names = append(names, name)
		if !strings.Contains(value, "/srv/lab/") {
			t.Errorf("%s leads to %s", name, value)
		}
	}
	want := []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "JAVA_TOOL_OPTIONS"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
func mustAddr(t *testing.T, s string) netip.Addr {
	t.Helper()
	addr, err := netip.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
