package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// Status writes how the lab and each of its programs is doing. It is an error if
// something that should run does not.
func (l *Lab) Status(ctx context.Context, out io.Writer) error {
	lab, err := l.plan()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "lab %d in %s: Kubernetes %s, API server %s, simulator %s\n\n", lab.Number, l.dir, l.version, render.APIURL(lab), render.ControlURL(lab))
	nodes := l.nodeWords(ctx)
	down := 0
	row := func(name, address, kind, says string) {
		memory := "-"
		if bytes, err := l.cgroups.Memory(cgroupOf(lab, name)); err == nil {
			memory = fmt.Sprintf("%d MiB", bytes>>20)
		}
		if _, err := l.alive(name); err != nil {
			says, down = "DOWN", down+1
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", name, address, kind, memory, says)
	}
	fmt.Fprintln(table, "NAME\tADDRESS\tKIND\tMEMORY\tSTATUS")
	row(render.HubName, lab.Hub().String(), "simulated Azure", "Running")
	for _, n := range lab.Nodes {
		row(n.Name(), n.Addr().String(), fmt.Sprintf("%s, %s", n.Layout, n.ProxyMode), nodes(n.Name()))
	}
	fmt.Fprintln(table, "\nPROGRAM\tON\tPROCESS\tSTARTS\tLAST END")
	down += l.programs(lab, table)
	if err := table.Flush(); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	if down > 0 {
		return fmt.Errorf("%d parts of the lab do not run", down)
	}
	return nil
}

// programs writes a row for each program and returns how many do not run.
func (l *Lab) programs(lab topology.Lab, out io.Writer) int {
	specs := []nodeinit.Spec{render.HubSpec(lab, l.paths())}
	owners := members(lab)
	for _, n := range lab.Nodes {
		specs = append(specs, render.NodeSpec(lab, n, l.paths()))
	}
	down := 0
	for i, spec := range specs {
		for _, p := range spec.Programs {
			state := programState(spec.Dir, p.Name)
			process := "DOWN"
			if l.runs(owners[i], state.PID) {
				process = fmt.Sprint(state.PID)
			} else {
				down++
			}
			fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%s\n", p.Name, owners[i], process, state.Starts, state.Ended)
		}
	}
	return down
}

// programState is empty for a program that was never started.
func programState(dir, program string) nodeinit.State {
	var s nodeinit.State
	if text, err := os.ReadFile(nodeinit.StateFile(dir, program)); err == nil && json.Unmarshal(text, &s) != nil {
		return nodeinit.State{}
	}
	return s
}

// runs looks at a process by its number in the member's own namespace.
func (l *Lab) runs(owner string, pid int) bool {
	p, err := l.alive(owner)
	if err != nil || pid == 0 {
		return false
	}
	_, err = os.Stat(fmt.Sprintf("/proc/%d/root/proc/%d", p.PID, pid))
	return err == nil
}

// nodeWords returns what Kubernetes says of a node.
func (l *Lab) nodeWords(ctx context.Context) func(string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	kube, err := l.kube()
	var list corev1.NodeList
	if err == nil {
		err = kube.List(ctx, &list)
	}
	if err != nil {
		return func(string) string { return "unknown: the API server does not answer" }
	}
	words := map[string]string{}
	for i := range list.Items {
		words[list.Items[i].Name] = "Ready"
		if reason := notReady(&list.Items[i]); reason != "" {
			words[list.Items[i].Name] = "NotReady: " + reason
		}
	}
	return func(name string) string {
		if w, ok := words[name]; ok {
			return w
		}
		return "not registered"
	}
}

// Env returns the variables that lead programs of this machine to the lab.
func (l *Lab) Env() ([]string, error) {
	lab, err := l.plan()
	if err != nil {
		return nil, err
	}
	p := l.paths()
	return []string{
		"KUBECONFIG=" + p.Kubeconfig("admin"),
		"LAB_SIMULATOR=" + render.ControlURL(lab),
		"LAB_AZURE_CA=" + p.AzureCA(),
		"LAB_DIR=" + string(l.dir),
		"LAB_KUBERNETES=" + l.version.String(),
		"LAB_BIN=" + p.Programs + ":" + p.Kubernetes,
	}, nil
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
