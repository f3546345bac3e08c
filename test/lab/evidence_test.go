//go:build e2e

package lab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/test/labcli"
)

// keepEvidence writes what there is of the logs of MIC and NMI, also of their
// containers that were restarted, of the lab's own logs, of what the cluster
// says of itself, and of the journal.
func keepEvidence(ctx context.Context, dir string) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	write := func(name, text string) { _ = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	for file, command := range map[string][]string{
		"status.txt": {"status"}, "azuresim.log": {"logs", "azuresim"}, "kube-apiserver.log": {"logs", "kube-apiserver"},
	} {
		out, _ := lab.Run(ctx, command...)
		write(file, out)
	}
	for _, node := range []string{"1", "2", "3"} {
		for _, component := range []string{"kubelet", "containerd", "kube-proxy"} {
			out, _ := lab.Run(ctx, "logs", component, "--node", node)
			write(component+"-"+node+".log", out)
		}
	}
	if lab.Kube == nil {
		return // the lab did not come up
	}
	for _, kind := range []string{"pods", "events", "azureassignedidentities", "azureidentityattachments"} {
		out, _ := lab.Kubectl(ctx, "get", kind, "--all-namespaces", "--output", "yaml")
		write(kind+".yaml", out)
	}
	pods := &corev1.PodList{}
	_ = lab.Kube.List(ctx, pods, client.InNamespace(labcli.SystemNamespace))
	for _, pod := range pods.Items {
		for file, text := range containerLogs(ctx, pod) {
			write(file, text)
		}
	}
	entries, err := lab.Sim.Journal(ctx, 0)
	var text strings.Builder
	for _, entry := range entries {
		fmt.Fprintln(&text, entry)
	}
	write("journal.txt", text.String()+fmt.Sprint(err))
}

// containerLogs returns the logs of a pod's containers, by the names of their
// files. One that was restarted has the log of its last run, too.
func containerLogs(ctx context.Context, pod corev1.Pod) map[string]string {
	logs := map[string]string{}
	for _, c := range pod.Status.ContainerStatuses {
		command := []string{"--namespace", pod.Namespace, "logs", pod.Name, "--container", c.Name, "--tail=-1"}
		name := pod.Name + "-" + c.Name
		logs[name+".log"], _ = lab.Kubectl(ctx, command...)
		if c.RestartCount > 0 {
			logs[name+"-previous.log"], _ = lab.Kubectl(ctx, append(command, "--previous")...)
		}
	}
	return logs
}
