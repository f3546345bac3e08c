// Package cli is the command line of the lab, one file for each group of
// commands.
//
// It reads arguments and says what happened. It must not do anything itself.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/build"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/cluster"
)

// Env is what a command has of the world.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Exec becomes another program, as syscall.Exec.
	Exec func(path string, args, env []string) error
}

// Run runs the command line and returns the exit code.
func Run(ctx context.Context, args []string, env Env) int {
	a := &app{env: env, started: time.Now()}
	root := a.root() //nolint:contextcheck // commands take theirs from ExecuteContext
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(env.Stderr, "lab:", err)
		return 1
	}
	return 0
}

// app holds the flags of all commands.
type app struct {
	env     Env
	dir     string
	source  string
	started time.Time
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A real Kubernetes on this machine, with a simulated Azure beside it",
		Long: `lab runs a real Kubernetes on this machine without Docker: etcd, API server, controller manager and scheduler,
and nodes with containerd, kubelet, kube-proxy and CNI in namespaces of their own. azuresim is its Azure: the
metadata service of each node, ARM, Entra, Key Vault and Blob under their real names.

Nothing in a lab can leave the machine, and the machine's own netfilter rules, sysctls and cgroups stay as
they are. It needs root.`,
		Example:       "  lab up\n  eval \"$(lab env)\"; kubectl get nodes\n  lab exec web -- curl -H Metadata:true 'http://169.254.169.254/metadata/instance?api-version=2021-02-01'\n  lab down",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.PersistentFlags().StringVar(&a.dir, "dir", os.Getenv("LAB_DIR"), "folder of the lab, or LAB_DIR (default: .cache/lab/state in the source tree)")
	root.PersistentFlags().StringVar(&a.source, "source", os.Getenv("LAB_SOURCE"), "source tree of this project, or LAB_SOURCE (default: where this program or the working directory is)")
	root.AddCommand(a.up(), a.down(), a.status(), a.printEnv(), a.load(), a.exec(), a.node(), a.logs(), a.build(), a.images(), a.initNode())
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// progressf tells a step on stderr, with the seconds since the start.
func (a *app) progressf(format string, args ...any) {
	fmt.Fprintf(a.env.Stderr, "%6.1fs  %s\n", time.Since(a.started).Seconds(), fmt.Sprintf(format, args...))
}

func (a *app) builder() (build.Builder, error) {
	places := []string{a.source}
	if a.source == "" {
		places = nil
		if self, err := os.Executable(); err == nil {
			places = append(places, filepath.Dir(self))
		}
		if cwd, err := os.Getwd(); err == nil {
			places = append(places, cwd)
		}
	}
	root, err := build.FindRoot(places...)
	return build.Builder{Root: root, Progress: a.progressf}, err
}

func (a *app) lab() (*cluster.Lab, error) {
	builder, err := a.builder()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	dir := a.dir
	if dir == "" {
		dir = filepath.Join(builder.Root, ".cache", "lab", "state")
	}
	return cluster.Open(cluster.Options{Dir: dir, Builder: builder, Self: self, Progress: a.progressf})
}

// become ends this program in favour of another, so that signals, terminal and
// exit code are that one's own.
func (a *app) become(c cluster.Command) error {
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return fmt.Errorf("finding %s: %w", c.Args[0], err)
	}
	if err := a.env.Exec(path, c.Args, c.Env); err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}
