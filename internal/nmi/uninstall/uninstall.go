// Package uninstall is the command that ends all agents for good: it deletes their
// DaemonSet, which is what tells an agent to take its rules from its node, waits
// for them, and says on which nodes that is not known to have been done.
//
// It runs before helm takes away what agents need to find that out. It works
// through the API server alone; it must not touch a node.
package uninstall

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// Name is what a command line begins with that means this command.
const Name = "uninstall"

// Summary says what it does, for the help of the program.
const Summary = "deletes NMI's DaemonSet, and tells on which nodes its rules may be left"

const help = `It deletes NMI's DaemonSet and waits until all of its pods have ended, which take NMI's rules from their
nodes. It then reads the AzureIdentityNodeReports, in which they say so, and names the nodes of which
it is not known that nothing is left. It can be repeated: if the DaemonSet is gone, it only looks.

Exit code: 0 if nothing is left, or the agents write no reports and have ended; 1 after an error; 2 for a
command line that cannot be read; 3 if nodes may have rules, and so refuse tokens to their pods.`

// Options are what a user sets.
type Options struct {
	Kubeconfig string
	// Namespace and DaemonSet are where the agents are.
	Namespace, DaemonSet string
	// ReportNamespace is where the agents report; empty: they do not.
	ReportNamespace string
	// Timeout bounds the wait for the agents to end.
	Timeout time.Duration

	// For tests: nil is what Kubeconfig says.
	rest *rest.Config
}

func (o *Options) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig file; empty for the pod's own ServiceAccount")
	f.StringVar(&o.Namespace, "namespace", "", "namespace of the DaemonSet (required)")
	f.StringVar(&o.DaemonSet, "daemonset", "aad-pod-identity-nmi", "name of the DaemonSet")
	f.StringVar(&o.ReportNamespace, "report-namespace", "", "namespace of the AzureIdentityNodeReports, as the agents have it; empty if they write none")
	f.DurationVar(&o.Timeout, "timeout", 4*time.Minute, "how long to wait for the agents to end")
}

func (o *Options) check() error {
	switch {
	case o.Namespace == "" || o.DaemonSet == "":
		return fmt.Errorf("--namespace is %q and --daemonset %q: name NMI's DaemonSet by both", o.Namespace, o.DaemonSet)
	case o.Timeout <= 0:
		return fmt.Errorf("--timeout is %s: want more than 0", o.Timeout)
	}
	return nil
}

// Execute runs the command with the arguments after its name, and returns the exit
// code of the process.
func Execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return execute(ctx, &Options{}, args, world{stdout, stderr})
}

// world is where the command speaks to.
type world struct{ stdout, stderr io.Writer }

func execute(ctx context.Context, o *Options, args []string, w world) int {
	line := command.Line{Name: Name, Summary: Summary, Help: help, About: "Flags", Flags: o.addFlags, Check: o.check}
	if code, run := line.Read(args, w.stderr); !run {
		return code
	}
	code, err := run(ctx, o, w)
	if err != nil {
		command.Sayf(w.stderr, "nmi %s: %v\n", Name, err)
	}
	return code
}

func run(ctx context.Context, o *Options, w world) (int, error) {
	c, err := newCluster(o)
	if err != nil {
		return command.CodeError, err
	}
	agents, err := c.end(ctx, w)
	if err != nil {
		return command.CodeError, err
	}
	reports, reporting, err := c.readReports(ctx)
	if err != nil {
		return command.CodeError, err
	}
	found := judge(agents, reports, reporting)
	if found.left, err = c.stillThere(ctx, found.left); err != nil {
		return command.CodeError, err
	}
	return o.tell(w, found, reporting), nil
}

// tell says what was found.
func (o *Options) tell(w world, found verdict, reporting bool) int {
	if reporting {
		command.Sayf(w.stdout, "%s known to have no rules of NMI's\n", count(found.confirmed, "node is", "nodes are"))
	} else {
		command.Sayf(w.stdout, "the agents write no reports: whether they removed NMI's rules is not known. Where pods are refused, nmi cleanup on the node removes them\n")
	}
	if len(found.left) == 0 {
		return command.CodeDone
	}
	command.Sayf(w.stderr, "nmi %s: %s have NMI's rules still, which keep pods from the metadata service:\n", Name, count(len(found.left), "node may", "nodes may"))
	for _, l := range found.left {
		command.Sayf(w.stderr, "  %s: %s\n", l.node, l.why)
	}
	command.Sayf(w.stderr, `Wait for a node that does not answer, or delete its Node if it is gone for good. When the agent of a node has
ended and the node is named still, run nmi cleanup on it, or restart it, then
  kubectl delete azureidentitynodereport --namespace %s NODE
and uninstall again. helm uninstall --no-hooks uninstalls without asking.
`, o.reportNamespace())
	return command.CodeLeft
}

func (o *Options) reportNamespace() string {
	if o.ReportNamespace == "" {
		return o.Namespace
	}
	return o.ReportNamespace
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// config returns how to reach the API server. Nothing is asked so often that it
// would need the client's own limit.
func (o *Options) config() (*rest.Config, error) {
	var out *rest.Config
	var err error
	switch {
	case o.rest != nil:
		out = rest.CopyConfig(o.rest)
	case o.Kubeconfig == "":
		out, err = rest.InClusterConfig()
	default:
		out, err = clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("reading how to reach the API server: %w", err)
	}
	out.QPS, out.UserAgent = -1, "aad-pod-identity/NMI/"+obs.Version()
	return out, nil
}
