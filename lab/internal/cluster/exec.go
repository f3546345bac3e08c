package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/state"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// Command is a program to run in place of this one.
type Command struct {
	Args []string
	Env  []string
}

// InNode returns the command that runs a command in all namespaces of a node.
func (l *Lab) InNode(number int, command []string) (Command, error) {
	lab, err := l.plan()
	if err != nil {
		return Command{}, err
	}
	n, err := nodeAt(lab, number)
	if err != nil {
		return Command{}, err
	}
	p, err := l.alive(n.Name())
	if err != nil {
		return Command{}, err
	}
	path := "PATH=" + l.builder.Programs() + ":" + l.builder.Kubernetes() + ":" + systemPath
	return Command{Args: enter(p, command...), Env: append(without(os.Environ(), "PATH"), path)}, nil
}

// inSandbox gives a program a mount namespace of its own in which two files are
// the pod's, then becomes it.
const inSandbox = `mount --bind "$0" /etc/resolv.conf && mount --bind "$1" /etc/hosts && shift && exec "$@"`

// InPod returns the command that runs a program of this machine in the network
// namespace of a pod, with the cluster's DNS and with the simulated Azure's CA
// in the variables where programs look for one.
func (l *Lab) InPod(ctx context.Context, namespace, pod string, command []string) (Command, error) {
	lab, err := l.plan()
	if err != nil {
		return Command{}, err
	}
	object, err := l.pod(ctx, namespace, pod)
	if err != nil {
		return Command{}, err
	}
	pid, err := l.processOf(ctx, lab, object)
	if err != nil {
		return Command{}, err
	}
	resolv, hosts, err := l.writeNames(lab, object)
	if err != nil {
		return Command{}, err
	}
	if err := l.recordSelf(); err != nil {
		return Command{}, err
	}
	args := append([]string{
		"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--",
		"unshare", "--mount", "--propagation=private", "--", "/bin/sh", "-c", inSandbox, resolv, hosts,
	}, command...)
	trust := render.Trust(l.paths())
	var names []string
	for _, variable := range trust {
		name, _, _ := strings.Cut(variable, "=")
		names = append(names, name)
	}
	return Command{Args: args, Env: append(without(os.Environ(), append(names, proxies()...)...), trust...)}, nil
}

// execPrefix begins the records of programs that run in pods' networks.
const execPrefix = "exec-"

// recordSelf writes down this process, which becomes the program in the pod's
// network: it would keep the network alive after the lab. Records of programs
// that have ended go.
func (l *Lab) recordSelf() error {
	names, err := l.dir.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if p, ok, err := l.dir.Recorded(name); err == nil && ok && strings.HasPrefix(name, execPrefix) && !p.Alive() {
			if err := l.dir.Forget(name); err != nil {
				return err
			}
		}
	}
	self, err := state.Identify(os.Getpid())
	if err != nil {
		return err
	}
	return l.dir.Record(fmt.Sprintf("%s%d", execPrefix, self.PID), self)
}

// proxies would lead a pod's program out of its pod.
func proxies() []string {
	return []string{"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
}

func (l *Lab) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	kube, err := l.kube()
	if err != nil {
		return nil, err
	}
	pod := &corev1.Pod{}
	if err := kube.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, pod); err != nil {
		return nil, fmt.Errorf("finding the pod: %w", err)
	}
	if pod.Spec.NodeName == "" {
		return nil, fmt.Errorf("pod %s/%s is on no node yet", namespace, name)
	}
	return pod, nil
}

// processOf finds a process of a pod by its cgroup, whose name holds the pod's
// UID. It waits a moment for a pod that is only starting.
func (l *Lab) processOf(ctx context.Context, lab topology.Lab, pod *corev1.Pod) (int, error) {
	cgroup, folder := cgroupOf(lab, pod.Spec.NodeName), "pod"+string(pod.UID)
	var pid int
	err := await(ctx, "pod "+pod.Name, 10*time.Second, func(context.Context) error {
		pids, err := l.cgroups.Processes(cgroup, func(dir string) bool { return dir == folder })
		if err == nil && len(pids) == 0 {
			err = fmt.Errorf("no process of it runs on %s: its phase is %s", pod.Spec.NodeName, pod.Status.Phase)
		}
		if err == nil {
			pid = pids[0]
		}
		return err
	})
	return pid, err
}

// writeNames writes the resolv.conf and hosts of a pod. A pod on the node's
// network resolves as the node does.
func (l *Lab) writeNames(lab topology.Lab, pod *corev1.Pod) (resolv, hosts string, err error) {
	resolv, hosts = l.dir.Path("exec", string(pod.UID), "resolv.conf"), l.dir.Path("exec", string(pod.UID), "hosts")
	names := render.Resolv(pod.Namespace)
	if pod.Spec.HostNetwork {
		names = "nameserver " + lab.Hub().String() + "\n"
	}
	return resolv, hosts, writeFiles(map[string]string{
		resolv: names,
		hosts:  fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", pod.Status.PodIP, pod.Name),
	})
}

// without leaves out variables of these names.
func without(env []string, names ...string) []string {
	var kept []string
	for _, variable := range env {
		name, _, _ := strings.Cut(variable, "=")
		if !slices.Contains(names, name) {
			kept = append(kept, variable)
		}
	}
	return kept
}

// Log returns the file of a component's log; of one that every node has, that on
// the node of a number.
func (l *Lab) Log(component string, node int) (string, error) {
	lab, err := l.plan()
	if err != nil {
		return "", err
	}
	n, err := nodeAt(lab, node)
	if err != nil {
		return "", err
	}
	known := map[string]string{render.HubName: nodeinit.LogFile(l.dir.Path(render.HubName), "init"), "init": nodeinit.LogFile(l.dir.Path(n.Name()), "init")}
	for _, p := range render.HubSpec(lab, l.paths()).Programs {
		known[p.Name] = nodeinit.LogFile(l.dir.Path(render.HubName), p.Name)
	}
	for _, on := range []topology.Node{lab.Nodes[0], n} { // the control plane is on the first
		for _, p := range render.NodeSpec(lab, on, l.paths()).Programs {
			known[p.Name] = nodeinit.LogFile(l.dir.Path(on.Name()), p.Name)
		}
	}
	file, ok := known[component]
	if !ok {
		return "", fmt.Errorf("there is no component %q: choose from %s", component, strings.Join(sortedKeys(known), ", "))
	}
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s has not been started yet: `lab status` shows what runs", component)
	}
	return file, nil
}
