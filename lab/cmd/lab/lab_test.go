package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pods are one on each node, and one on a node's own network.
const pods = `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: p1}, spec: {nodeName: node1, terminationGracePeriodSeconds: 0, containers: [&c {name: c, image: "lab.local/aad-pod-identity/pause:dev", imagePullPolicy: Never}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: p2}, spec: {nodeName: node2, terminationGracePeriodSeconds: 0, containers: [*c]}}
- {apiVersion: v1, kind: Pod, metadata: {name: p3}, spec: {nodeName: node3, terminationGracePeriodSeconds: 0, containers: [*c]}}
- {apiVersion: v1, kind: Pod, metadata: {name: h2}, spec: {nodeName: node2, hostNetwork: true, terminationGracePeriodSeconds: 0, containers: [*c]}}
`

// TestLab starts a lab of three nodes, tries what the lab promises, and takes it
// away again.
func TestLab(t *testing.T) {
	before := machine(t)
	l := newLab(t)
	l.run(t, "up", "--nodes", "3")
	number := l.number(t)
	expectSame(t, "while the lab runs", before)
	tryAll(t, l, l.run(t, "env"))
	t.Run("a second lab keeps apart", func(t *testing.T) { second(t, number) })
	l.run(t, "status") // the second has done the first no harm

	running := processes(t, number)
	left := l.command(t.Context(), "exec", "p1", "--", "sleep", "600")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, func() (string, bool) { return "sleep never began", runs(t, left.Process.Pid, "sleep") })
	l.run(t, "down")
	if err := left.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("a program in a pod's network: %v", err)
	}
	l.expectNothing(t, number)
	expectEnded(t, running)
	expectSame(t, "after the lab", before)
}

// runs reports whether a process has become a program.
func runs(t *testing.T, pid int, program string) bool {
	t.Helper()
	return strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/comm", pid))) == program
}

func tryAll(t *testing.T, l *lab, env string) {
	t.Run("status says that all is well", func(t *testing.T) {
		if out := l.run(t, "status"); strings.Contains(out, "DOWN") || strings.Count(out, "  Ready") != 3 {
			t.Error(out)
		}
	})
	t.Run("up again starts nothing", func(t *testing.T) {
		records := read(t, filepath.Join(l.dir, "process", "node1.json"))
		l.run(t, "up")
		if again := read(t, filepath.Join(l.dir, "process", "node1.json")); again != records {
			t.Errorf("node 1 was %s and is %s", records, again)
		}
		if out := l.refused(t, "up", "--nodes", "2"); !strings.Contains(out, "runs with 3 nodes: `lab down` first") {
			t.Error(out)
		}
		if out := l.refused(t, "up", "--kubernetes-version", "v1.30.0"); !strings.Contains(out, ": `lab down` first for one with v1.30.0") {
			t.Error(out)
		}
	})
	t.Run("every part is of the version that is told", func(t *testing.T) { oneVersion(t, l, env) })
	t.Run("pods run", func(t *testing.T) {
		for _, step := range [][]string{{"apply", "-f", "-"}, {"wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"}} {
			if _, err := l.kubectl(t.Context(), env, pods, step...); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("pods reach Azure and each other, and nothing else", func(t *testing.T) { reach(t, l, env) })
	t.Run("nodes differ", func(t *testing.T) { differ(t, l) })
	t.Run("a node may not touch another", func(t *testing.T) { restricted(t, l, env) })
	t.Run("programs come back", func(t *testing.T) {
		l.run(t, "node", "2", "--", "pkill", "-KILL", "-x", "kube-proxy")
		await(t, func() (string, bool) {
			out := l.out(t.Context(), "status")
			return out, strings.Contains(out, "killed by SIGKILL") && !strings.Contains(out, "DOWN")
		})
	})
	t.Run("images load", func(t *testing.T) {
		archive := strings.Fields(l.run(t, "images", "azuresim"))[1]
		l.run(t, "load", archive)
		if out := l.run(t, "node", "3", "--", "ctr", "-n", "k8s.io", "images", "ls", "-q"); !strings.Contains(out, "lab.local/aad-pod-identity/azuresim:dev") {
			t.Error(out)
		}
		l.refused(t, "load", os.DevNull)
	})
	t.Run("logs are there", func(t *testing.T) {
		for _, args := range [][]string{{"logs", "kube-apiserver"}, {"logs", "kubelet", "--node", "2"}, {"logs", "azuresim"}, {"logs", "init"}} {
			if l.run(t, args...) == "" {
				t.Errorf("%v is empty", args)
			}
		}
	})
}

// oneVersion compares what the lab says that it runs with what Kubernetes says.
func oneVersion(t *testing.T, l *lab, env string) {
	_, told, _ := strings.Cut(env, "LAB_KUBERNETES='")
	told, _, _ = strings.Cut(told, "'")
	if out := l.run(t, "status"); told == "" || !strings.Contains(out, ": Kubernetes "+told+", ") {
		t.Errorf("`lab env` tells of version %q, status of\n%s", told, out)
	}
	nodes, err := l.kubectl(t.Context(), env, "", "get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}")
	if want := strings.Join([]string{told, told, told}, " "); err != nil || nodes != want {
		t.Errorf("nodes run %q, %v; want %q", nodes, err, want)
	}
	both, err := l.kubectl(t.Context(), env, "", "version")
	if err != nil || !strings.Contains(both, "Client Version: "+told) || !strings.Contains(both, "Server Version: "+told) {
		t.Errorf("kubectl and API server: %v\n%s", err, both)
	}
}

// reach asks from inside the pods.
func reach(t *testing.T, l *lab, env string) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dns, err := l.kubectl(t.Context(), env, "", "-n", "kube-system", "get", "pod", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].status.podIP}")
	if err != nil {
		t.Fatal(err)
	}
	const imds = "http://169.254.169.254/metadata/"
	const token = imds + "identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
	const clientID = `"client_id":"22222222-3333-4444-8555-666666666666"`
	control := "http://10." + fmt.Sprint(100+l.number(t)) + ".254.1:8090/healthz"
	for name, c := range map[string]struct{ pod, url, want string }{
		"a token of the node's identity, on a bridge":    {"p1", token, clientID},
		"a token of the node's identity, point-to-point": {"p2", token, clientID},
		"a token of the node's identity, on its network": {"h2", token, clientID},
		"IMDS of the pod's own node, 1":                  {"p1", imds + "instance?api-version=2021-02-01", "aks-pool1-12345678-vmss"},
		"IMDS of the pod's own node, 2":                  {"p2", imds + "instance?api-version=2021-02-01", "aks-pool2-12345678-vmss"},
		"Entra by its name and a certificate of the lab": {"p1", "https://login.microsoftonline.com/00000000-aaaa-4bbb-8ccc-dddddddddddd/discovery/v2.0/keys", `"keys"`},
		"ARM":                                {"p2", "https://management.azure.com/", "401"},
		"any vault":                          {"p3", "https://anything.vault.azure.net/secrets/x?api-version=7.4", "40"},
		"ARM from the node's network":        {"h2", "https://management.azure.com/", "401"},
		"another node's pod, from a bridge":  {"p1", "http://" + dns + ":8181/ready", "200"},
		"another node's pod, point-to-point": {"p2", "http://" + dns + ":8181/ready", "200"},
		"another node's pod, from the virtual machine": {"p3", "http://" + dns + ":8181/ready", "200"},
		"a service by name, kube-proxy by iptables":    {"p1", "http://kubernetes.default.svc.cluster.local:443/", "HTTPS server"},
		"a service by name, kube-proxy by nftables":    {"p2", "http://kubernetes.default.svc.cluster.local:443/", "HTTPS server"},
	} {
		t.Run(name, func(t *testing.T) {
			if out := l.run(t, "exec", c.pod, "--", self, probe, c.url); !strings.Contains(out, c.want) {
				t.Errorf("got %s, want %s", out, c.want)
			}
		})
	}
	for name, c := range map[string]struct{ url, want string }{
		"a name outside":                {"https://example.com/", "no such host"},
		"an address outside":            {"http://192.0.2.1/", "unreachable"},
		"the simulator's control API":   {control, "unreachable"},
		"a server of another authority": {"https://10.96.0.1:443/", "x509"},
	} {
		for _, pod := range []string{"p1", "p2", "h2"} {
			t.Run("not "+name+", from "+pod, func(t *testing.T) {
				if out := l.refused(t, "exec", pod, "--", self, probe, c.url); !strings.Contains(out, c.want) {
					t.Errorf("got %s, want %s", out, c.want)
				}
			})
		}
	}
	if out := l.refused(t, "exec", "nobody", "--", self, probe, token); !strings.Contains(out, `pods "nobody" not found`) {
		t.Error(out)
	}
}

// restricted tries what a node's own certificate must not do.
func restricted(t *testing.T, l *lab, env string) {
	kubeconfig := "--kubeconfig=" + filepath.Join(l.dir, "pki", "node1.kubeconfig")
	for want, args := range map[string][]string{
		"node 'node1' cannot read 'node2', only its own Node object":                    {"get", "node", "node2"},
		`is forbidden: node "node1" is not allowed to modify taints`:                    {"taint", "node", "node1", "a=b:NoSchedule"},
		`secrets is forbidden: User "system:node:node1" cannot list resource "secrets"`: {"get", "secrets", "-A"},
	} {
		if out, err := l.kubectl(t.Context(), env, "", append(args, kubeconfig)...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
}

// differ looks at what makes one node unlike another.
func differ(t *testing.T, l *lab) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"node 1 has a bridge":                  {[]string{"1", "--", "ip", "-br", "link"}, "cni0"},
		"node 1 has route_localnet":            {[]string{"1", "--", "cat", "/proc/sys/net/ipv4/conf/all/route_localnet"}, "1"},
		"node 1 has kube-proxy's iptables":     {[]string{"1", "--", "iptables", "-t", "nat", "-S", "KUBE-SERVICES"}, "-N KUBE-SERVICES"},
		"node 2 links pods one by one":         {[]string{"2", "--", "ip", "route"}, "dev veth"},
		"node 2 has kube-proxy's nftables":     {[]string{"2", "--", "nft", "list", "table", "ip", "kube-proxy"}, "table ip kube-proxy"},
		"the node's azure.json":                {[]string{"3", "--", "cat", "/etc/kubernetes/azure.json"}, `"vmType": "standard"`},
		"nodes trust the simulated Azure":      {[]string{"1", "--", "cat", "/etc/ssl/certs/ca-certificates.crt"}, read(t, filepath.Join(l.dir, "azure-ca.pem"))},
		"node processes resolve Azure's names": {[]string{"2", "--", "getent", "hosts", "some.blob.core.windows.net"}, "some.blob.core.windows.net"},
		"the blackhole is below the route":     {[]string{"2", "--", "ip", "route"}, "blackhole 169.254.169.254 metric 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			if out := l.run(t, append([]string{"node"}, c.args...)...); !strings.Contains(out, c.want) {
				t.Errorf("got %s, want %s", out, c.want)
			}
		})
	}
	if out := l.run(t, "node", "2", "--", "sh", "-c", "cat /proc/sys/net/ipv4/conf/*/route_localnet"); strings.Contains(out, "1") {
		t.Errorf("something set route_localnet on node 2: %s", out)
	}
	for _, n := range []string{"1", "2", "3"} {
		if out := l.run(t, "node", n, "--", "ip", "route"); strings.Contains(out, "default") {
			t.Errorf("node %s has a way out: %s", n, out)
		}
		if out := l.run(t, "node", n, "--", "ip", "addr"); strings.Contains(out, "169.254.169.254") {
			t.Errorf("node %s has the metadata address: %s", n, out)
		}
	}
}

// second starts another lab beside one that runs.
func second(t *testing.T, first int) {
	l := newLab(t)
	l.run(t, "up", "--nodes", "1")
	number := l.number(t)
	if number == first {
		t.Errorf("both labs are number %d", number)
	}
	l.run(t, "status")
	l.run(t, "down")
	l.expectNothing(t, number)
}

// TestCrash kills `lab up` at each of its steps, and `lab down`. What they leave
// can be taken away, and in its place a new lab started.
func TestCrash(t *testing.T) {
	for _, at := range []string{"lab ", "azuresim,", "node1 at", "API server ready"} {
		t.Run(at, func(t *testing.T) {
			l := newLab(t)
			crash(t, l, at, "up", "--nodes", "1")
			number := l.number(t)
			if number < 0 {
				t.Fatalf("no lab was there at %q", at)
			}
			l.run(t, "down")
			l.expectNothing(t, number)
		})
	}
	t.Run("and up again", func(t *testing.T) {
		l := newLab(t)
		crash(t, l, "node1 at", "up", "--nodes", "1")
		l.run(t, "up", "--nodes", "1")
		number := l.number(t)
		l.run(t, "status")
		kill(t, filepath.Join(l.dir, "process", "azure.json"))
		await(t, func() (string, bool) {
			out := l.out(t.Context(), "status")
			return out, strings.Contains(out, "DOWN") && strings.Contains(out, "parts of the lab do not run")
		})
		running := processes(t, number)
		crash(t, l, "stopping node1", "down")
		l.run(t, "down")
		expectEnded(t, running)
		l.expectNothing(t, number)
	})
}

// kill ends a process of the lab that is on record.
func kill(t *testing.T, record string) {
	t.Helper()
	var process struct{ PID int }
	if err := json.Unmarshal([]byte(read(t, record)), &process); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(process.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestNeedsRoot(t *testing.T) {
	l := newLab(t)
	for _, args := range [][]string{{"up"}, {"down"}, {"status"}, {"exec", "p", "--", "true"}} {
		cmd := l.command(t.Context(), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "a lab needs root") {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
}

// crash starts a command and kills it as soon as it tells of a step.
func crash(t *testing.T, l *lab, at string, args ...string) {
	t.Helper()
	cmd := l.command(t.Context(), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told := false
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if _, step, _ := strings.Cut(lines.Text(), "s  "); strings.HasPrefix(step, at) {
			told = true
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if !told {
		t.Fatalf("lab %s never came to %q", args[0], at)
	}
}

func expectSame(t *testing.T, when string, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, machine(t)); diff != "" {
		t.Errorf("the machine changed %s (-before +now):\n%s", when, diff)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// await asks until it is so, for half a minute.
func await(t *testing.T, so func() (string, bool)) {
	t.Helper()
	deadline, ticker := time.After(30*time.Second), time.NewTicker(200*time.Millisecond)
	defer ticker.Stop()
	for {
		words, ok := so()
		if ok {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal(words)
		}
	}
}
