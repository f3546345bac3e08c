package render

import (
	"fmt"
	"path/filepath"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// HubName is the name of the simulated Azure among the nodes of a lab.
const HubName = "azure"

// The ports of the lab.
const (
	controlPort = 8090
	apiPort     = 6443
)

// ControlURL is the simulator's control API, as the machine reaches it.
func ControlURL(lab topology.Lab) string {
	return fmt.Sprintf("http://%s:%d", lab.HubEnd(), controlPort)
}

// APIURL is the API server, as everyone reaches it.
func APIURL(lab topology.Lab) string { return fmt.Sprintf("https://%s:%d", lab.API(), apiPort) }

// HubSpec is the namespace of the simulated Azure: the simulator and the DNS
// that knows its names.
func HubSpec(lab topology.Lab, p Paths) nodeinit.Spec {
	dir := p.node(HubName)
	return nodeinit.Spec{
		Hostname: fmt.Sprintf("lab%d-%s", lab.Number, HubName), Dir: dir,
		Mounts:   []nodeinit.Mount{{Source: "tmpfs", Target: "/run", Type: "tmpfs"}},
		Settings: map[string]string{"net/ipv4/ip_forward": "1"},
		Programs: []nodeinit.Program{
			{
				Name: "azuresim", Path: filepath.Join(p.Programs, "azuresim"),
				Args: []string{
					"--https-address=" + lab.Hub().String() + ":443",
					"--imds-address=" + topology.Metadata().String() + ":80",
					fmt.Sprintf("--control-address=%s:%d", lab.HubEnd(), controlPort),
					"--state=" + p.SimulatorState(), "--ca-cert=" + p.AzureCA(), "--ca-key=" + filepath.Join(p.State, "azure-ca.key"),
				},
			},
			{Name: "dns", Path: filepath.Join(p.Programs, "coredns"), Args: []string{"-conf", filepath.Join(dir, "Corefile")}},
		},
	}
}

// NodeSpec is a node: its own /etc over the machine's, its own /run, /var/lib
// and /var/log in place of them, and its programs; on the first node those of
// the control plane too.
func NodeSpec(lab topology.Lab, n topology.Node, p Paths) nodeinit.Spec {
	dir := p.node(n.Name())
	overlay := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", filepath.Join(dir, "etc"), filepath.Join(dir, "etc-work"))
	programs := []nodeinit.Program{{
		Name: "containerd", Path: filepath.Join(p.Programs, "containerd"), Args: []string{"--config", p.config(n, "containerd.toml")},
	}}
	if n.Number == 1 {
		programs = append(programs, controlPlane(lab, p)...)
	}
	return nodeinit.Spec{
		Hostname: n.Name(), Dir: dir,
		Mounts: []nodeinit.Mount{
			{Source: "overlay", Target: "/etc", Type: "overlay", Options: overlay},
			{Source: "tmpfs", Target: "/run", Type: "tmpfs"},
			{Source: "tmpfs", Target: "/run/lock", Type: "tmpfs"},
			{Source: p.varLib(n), Target: "/var/lib", Type: "bind"},
			{Source: p.varLog(n), Target: "/var/log", Type: "bind"},
		},
		Settings: map[string]string{"net/ipv4/ip_forward": "1"},
		Covered: map[string]string{ // what a kubelet writes
			"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
			"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
		},
		Programs: append(programs, nodePrograms(lab, n, p)...),
	}
}

func ready(lab topology.Lab) nodeinit.Condition {
	return nodeinit.Condition{URL: APIURL(lab) + "/readyz"}
}

func nodePrograms(lab topology.Lab, n topology.Node, p Paths) []nodeinit.Program {
	return []nodeinit.Program{
		{
			Name: "kubelet", Path: filepath.Join(p.Kubernetes, "kubelet"),
			Args: []string{
				"--config=" + p.config(n, "kubelet.yaml"), "--kubeconfig=" + p.Kubeconfig(n.Name()),
				"--hostname-override=" + n.Name(), "--node-ip=" + n.Addr().String(), "--cert-dir=/var/lib/kubelet/pki",
			},
			After: []nodeinit.Condition{{Socket: containerdSocket}, ready(lab)},
		},
		{
			Name: "kube-proxy", Path: filepath.Join(p.Kubernetes, "kube-proxy"), Args: []string{"--config=" + p.config(n, "kube-proxy.yaml")},
			After: []nodeinit.Condition{ready(lab)},
		},
	}
}

func controlPlane(lab topology.Lab, p Paths) []nodeinit.Program {
	url, pki := APIURL(lab), p.pki
	return []nodeinit.Program{
		{
			Name: "etcd", Path: filepath.Join(p.Kubernetes, "etcd"),
			Args: []string{"--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn"},
		},
		{
			Name: "kube-apiserver", Path: filepath.Join(p.Kubernetes, "kube-apiserver"),
			Args: []string{
				"--etcd-servers=http://127.0.0.1:2379",
				"--bind-address=0.0.0.0", fmt.Sprintf("--secure-port=%d", apiPort), "--advertise-address=" + lab.API().String(),
				"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"), "--client-ca-file=" + pki("ca.crt"),
				"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet.key"),
				"--kubelet-preferred-address-types=InternalIP",
				"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
				"--service-cluster-ip-range=" + topology.Services().String(),
				"--service-account-issuer=" + url, "--api-audiences=" + url,
				"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
			},
		},
		{
			Name: "kube-controller-manager", Path: filepath.Join(p.Kubernetes, "kube-controller-manager"),
			Args: []string{
				"--kubeconfig=" + p.Kubeconfig("controller-manager"), "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
				"--use-service-account-credentials=true", "--service-account-private-key-file=" + pki("sa.key"), "--root-ca-file=" + pki("ca.crt"),
				"--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
				// Its first seconds are dozens of service accounts, one after the other.
				"--kube-api-qps=500", "--kube-api-burst=1000",
			},
			After: []nodeinit.Condition{ready(lab)},
		},
		{
			Name: "kube-scheduler", Path: filepath.Join(p.Kubernetes, "kube-scheduler"),
			Args:  []string{"--kubeconfig=" + p.Kubeconfig("scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1"},
			After: []nodeinit.Condition{ready(lab)},
		},
	}
}

// Folders are the folders that a node needs before its mounts are made.
func Folders(n topology.Node, p Paths) []string {
	dir := p.node(n.Name())
	return []string{
		filepath.Join(dir, "etc"), filepath.Join(dir, "etc-work"), filepath.Join(dir, "config", "cni"),
		filepath.Join(p.varLib(n), "kubelet"), p.varLog(n),
	}
}
