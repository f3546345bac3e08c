package render

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// PauseImage holds the namespaces of every pod.
const PauseImage = "lab.local/aad-pod-identity/pause:dev"

// DNSImage is CoreDNS.
const DNSImage = "lab.local/aad-pod-identity/coredns:dev"

const containerdSocket = "/run/containerd/containerd.sock"

// The folders that a node has for itself, by what stands over them.
func (p Paths) varLib(n topology.Node) string { return filepath.Join(p.node(n.Name()), "var-lib") }
func (p Paths) varLog(n topology.Node) string { return filepath.Join(p.node(n.Name()), "var-log") }
func (p Paths) config(n topology.Node, file string) string {
	return filepath.Join(p.node(n.Name()), "config", file)
}

// Files returns the configuration of a node, by path on the machine. What the
// node sees in /etc is written to the upper folder of its overlay.
func Files(lab topology.Lab, n topology.Node, p Paths) map[string]string {
	etc := filepath.Join(p.node(n.Name()), "etc")
	return map[string]string{
		p.config(n, "containerd.toml"):              containerd(n, p),
		p.config(n, "cni/10-lab.conflist"):          cni(n),
		p.config(n, "kubelet.yaml"):                 kubelet(n, p),
		p.config(n, "kube-proxy.yaml"):              proxy(lab, n, p),
		filepath.Join(etc, "kubernetes/azure.json"): azureJSON(n),
		filepath.Join(etc, "resolv.conf"):           "nameserver " + lab.Hub().String() + "\n",
		filepath.Join(etc, "hosts"):                 fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", n.Addr(), n.Name()),
		filepath.Join(etc, "hostname"):              n.Name() + "\n",
	}
}

func containerd(n topology.Node, p Paths) string {
	return fmt.Sprintf(`version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
disabled_plugins = [
  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.nri.v1.nri',
  'io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing',
]

[grpc]
address = '%s'

[plugins.'io.containerd.internal.v1.opt']
path = '/var/lib/containerd-opt'

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '%s'

[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
# A machine without CAP_SYS_RESOURCE cannot lower oom_score_adj.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['%s']
conf_dir = '%s'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '%s'
SystemdCgroup = false
`, containerdSocket, PauseImage, p.CNI, p.config(n, "cni"), p.Runc)
}

// cni links pods. Neither layout hides a pod's address, and where kube-proxy
// leaves route_localnet alone, portmap does too: its snat would set it.
func cni(n topology.Node) string {
	ipam := object{"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [][]object{{{"subnet": n.Pods().String()}}}}
	plugin := object{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true, "ipam": ipam}
	if n.Layout == topology.PointToPoint {
		ipam["routes"] = []object{{"dst": "0.0.0.0/0"}}
		plugin = object{"type": "ptp", "ipMasq": false, "ipam": ipam}
	}
	portmap := object{"type": "portmap", "capabilities": object{"portMappings": true}, "snat": n.RouteLocalnet}
	text, err := json.MarshalIndent(object{"cniVersion": "1.0.0", "name": "lab", "plugins": []object{plugin, portmap}}, "", "  ")
	if err != nil {
		panic(err) // as toYAML
	}
	return string(text) + "\n"
}

func kubelet(n topology.Node, p Paths) string {
	config := object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": "0.0.0.0",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": p.pki("ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},
		"cgroupDriver":  "cgroupfs", "cgroupRoot": "/" + n.Cgroup(),
		"failSwapOn": false, "enforceNodeAllocatable": []string{},
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"providerID":               n.ProviderID(),
		"resolvConf":               "/etc/resolv.conf",
		"clusterDNS":               []string{topology.ServiceDNS().String()}, "clusterDomain": "cluster.local",
		// Images cannot be fetched again, so nothing may ever evict them.
		"evictionHard":                object{"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"nodeStatusUpdateFrequency": "4s", "serializeImagePulls": false,
		"logging": object{"verbosity": 2},
	}
	if p.Minor >= 31 { // which was the first to have it
		config["failCgroupV1"] = false
	}
	return toYAML(config)
}

func proxy(lab topology.Lab, n topology.Node, p Paths) string {
	config := object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode":               n.ProxyMode,
		"clientConnection":   object{"kubeconfig": p.Kubeconfig("proxy")},
		"hostnameOverride":   n.Name(),
		"clusterCIDR":        lab.PodRange().String(),
		"healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
		// The machine-wide limits of conntrack cannot be set from a network namespace.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
	if n.ProxyMode == "iptables" {
		config["iptables"] = object{"localhostNodePorts": n.RouteLocalnet}
	}
	if n.ProxyMode == "nftables" && p.Minor < 31 { // in 1.30 it was an alpha feature
		config["featureGates"] = object{"NFTablesProxyMode": true}
	}
	return toYAML(config)
}

// azureJSON is the cloud provider's file as AKS leaves it on a node.
func azureJSON(n topology.Node) string {
	kind, set := "vmss", n.Resource[strings.LastIndexByte(n.Resource, '/')+1:]
	if n.IsVM() {
		kind, set = "standard", ""
	}
	text, err := json.MarshalIndent(object{
		"cloud": "AzurePublicCloud", "tenantId": topology.Tenant, "subscriptionId": topology.Subscription,
		"resourceGroup": topology.NodeResourceGroup, "location": "westeurope", "vmType": kind, "primaryScaleSetName": set,
		"aadClientId": "msi", "aadClientSecret": "msi",
		"useManagedIdentityExtension": true, "userAssignedIdentityID": topology.AgentPoolClientID,
	}, "", "  ")
	if err != nil {
		panic(err) // as toYAML
	}
	return string(text) + "\n"
}
