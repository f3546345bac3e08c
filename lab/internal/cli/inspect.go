package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/cluster"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show nodes and programs; exit code 1 if one of them does not run", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := a.lab()
			if err != nil {
				return err
			}
			return lab.Status(cmd.Context(), a.env.Stdout)
		},
	}
}

func (a *app) printEnv() *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print variables for a shell: KUBECONFIG, the simulator's control API, its CA, and PATH",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			lab, err := a.lab()
			if err != nil {
				return err
			}
			variables, err := lab.Env()
			if err != nil {
				return err
			}
			for _, v := range variables {
				name, value, _ := strings.Cut(v, "=")
				fmt.Fprintf(a.env.Stdout, "export %s=%s\n", name, quote(value))
			}
			fmt.Fprintln(a.env.Stdout, `export PATH="$LAB_BIN:$PATH"`)
			return nil
		},
	}
}

// quote makes a value one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (a *app) logs() *cobra.Command {
	node, follow := 1, false
	cmd := &cobra.Command{
		Use:   "logs COMPONENT",
		Short: "Print the log of a component",
		Long: `logs prints the log of etcd, kube-apiserver, kube-controller-manager or kube-scheduler; of containerd, kubelet,
kube-proxy or init on a node; of azuresim or dns beside them, or of azure, their init.`,
		Args: exactly("a component", 1),
		RunE: func(_ *cobra.Command, args []string) error {
			lab, err := a.lab()
			if err != nil {
				return err
			}
			file, err := lab.Log(args[0], node)
			if err != nil {
				return err
			}
			tail := []string{"tail", "-n", "+1", file}
			if follow {
				tail = []string{"tail", "-n", "+1", "-F", file}
			}
			return a.become(cluster.Command{Args: tail, Env: os.Environ()})
		},
	}
	cmd.Flags().IntVar(&node, "node", 1, "number of the node")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as the log grows")
	return cmd
}

func (a *app) exec() *cobra.Command {
	namespace := "default"
	cmd := &cobra.Command{
		Use:   "exec [-n NAMESPACE] POD -- COMMAND [ARGUMENT...]",
		Short: "Run a program of this machine in a pod's network",
		Long: `exec runs any program of this machine in the network namespace of a pod: what it connects to sees the pod. Names
resolve as in the pod, and the simulated Azure's CA is trusted by way of the variables that Go, OpenSSL,
curl, Python, Node.js and Java read. Files, users and processes are this machine's.`,
		Example: "  lab exec web -- curl -sH Metadata:true 'http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net'",
		Args:    withCommand("a pod"),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := a.lab()
			if err != nil {
				return err
			}
			command, err := lab.InPod(cmd.Context(), namespace, args[0], args[1:])
			if err != nil {
				return err
			}
			return a.become(command)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", namespace, "namespace of the pod")
	return cmd
}

func (a *app) node() *cobra.Command {
	return &cobra.Command{
		Use:     "node N -- COMMAND [ARGUMENT...]",
		Short:   "Run a program in all namespaces of a node",
		Example: "  lab node 1 -- iptables -t nat -S\n  lab node 2 -- ctr -n k8s.io images ls\n  lab node 2 -- pkill -STOP kubelet",
		Args:    withCommand("the number of a node"),
		RunE: func(_ *cobra.Command, args []string) error {
			number, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("%q is no number of a node: want 1, 2, …", args[0])
			}
			lab, err := a.lab()
			if err != nil {
				return err
			}
			command, err := lab.InNode(number, args[1:])
			if err != nil {
				return err
			}
			return a.become(command)
		},
	}
}

// exactly asks for a number of arguments.
func exactly(what string, n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("want %s, got %d arguments: lab %s", what, len(args), cmd.Use)
		}
		return nil
	}
}

// withCommand asks for one argument and, behind --, a command.
func withCommand(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch dash := cmd.ArgsLenAtDash(); {
		case len(args) == 0 || dash == 0:
			return fmt.Errorf("want %s and a command: lab %s", what, cmd.Use)
		case dash < 0 && len(args) > 1:
			return fmt.Errorf("put -- before the command, so that its flags are its own: lab %s", cmd.Use)
		case dash > 1:
			return fmt.Errorf("want %s before --, got %s: lab %s", what, strings.Join(args[:dash], " "), cmd.Use)
		case len(args) < 2:
			return errors.New("want a command behind --: lab " + cmd.Use)
		}
		return nil
	}
}
