// Package labcli drives the lab as a user does, by its program and by helm, for
// the demo and the end-to-end tests.
//
// It must not know how a lab is made: that is the module lab.
package labcli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// SystemNamespace is where [Lab.InstallChart] installs.
const SystemNamespace = "kube-system"

// Lab is a lab in a folder, running or not.
type Lab struct {
	dir string

	// Env is what `lab env` says, Config and Kube have every right at the API
	// server, and Sim sets the simulated Azure up. They are set by Up.
	Env    map[string]string
	Config *rest.Config
	Kube   client.WithWatch
	Sim    *control.Client
}

// New returns the lab of a folder; an empty folder is the lab program's own
// default.
func New(dir string) *Lab { return &Lab{dir: dir} }

// Up starts the lab, or makes sure that it runs. Its progress goes to out.
func (l *Lab) Up(ctx context.Context, out io.Writer, args ...string) error {
	cmd := l.Command(ctx, append([]string{"up"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("starting the lab: %w", err)
	}
	if err := l.readEnv(ctx); err != nil {
		return err
	}
	var err error
	if l.Config, err = clientcmd.BuildConfigFromFlags("", l.Env["KUBECONFIG"]); err != nil {
		return fmt.Errorf("reading the lab's kubeconfig: %w", err)
	}
	l.Config.QPS = -1
	if l.Kube, err = client.NewWithWatch(l.Config, client.Options{Scheme: env.Scheme()}); err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	l.Sim = control.New(l.Env["LAB_SIMULATOR"], http.DefaultClient)
	return nil
}

// Down removes the lab. A lab that does not run is no error.
func (l *Lab) Down(ctx context.Context) error {
	if text, err := l.Run(ctx, "down"); err != nil {
		return fmt.Errorf("removing the lab: %w: %s", err, text)
	}
	return nil
}

// InstallChart installs MIC and NMI by helm from the chart of this source tree,
// or upgrades them, and waits until they are ready. Further arguments are
// helm's.
func (l *Lab) InstallChart(ctx context.Context, args ...string) error {
	command := append([]string{
		"upgrade", "--install", "aad-pod-identity", filepath.Join(env.Root(), "charts", "aad-pod-identity"),
		"--namespace", SystemNamespace, "--wait", "--timeout", "90s",
		"--set", "image.repository=lab.local/aad-pod-identity,image.imagePullPolicy=Never,mic.tag=dev,nmi.tag=dev",
		"--set", "mic.trustedCAConfigMap=lab-azure-ca",
	}, args...)
	if out, err := l.helm(ctx, command...); err != nil {
		return fmt.Errorf("installing the chart: %w: %s", err, out)
	}
	return nil
}

// UninstallChart removes what [Lab.InstallChart] has installed, by helm alone.
func (l *Lab) UninstallChart(ctx context.Context) error {
	if out, err := l.helm(ctx, "uninstall", "aad-pod-identity", "--namespace", SystemNamespace, "--timeout", "90s"); err != nil {
		return fmt.Errorf("uninstalling the chart: %w: %s", err, out)
	}
	return nil
}

// helm runs the real helm and returns all that it prints.
func (l *Lab) helm(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, Program("helm"), args...) //nolint:gosec // a program that make has built
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Env["KUBECONFIG"])
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Kubectl runs the lab's kubectl, which env finds by the lab's PATH, and returns
// all that it prints.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "env", append([]string{"kubectl"}, args...)...) //nolint:gosec // a program that make has built
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Env["KUBECONFIG"], "PATH="+l.Env["LAB_BIN"]+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Command is the lab program on this lab.
func (l *Lab) Command(ctx context.Context, args ...string) *exec.Cmd {
	if l.dir != "" {
		args = append([]string{"--dir", l.dir}, args...)
	}
	return exec.CommandContext(ctx, Program("lab"), args...) //nolint:gosec // a program that make has built
}

// Run runs the lab program and returns all that it prints.
func (l *Lab) Run(ctx context.Context, args ...string) (string, error) {
	out, err := l.Command(ctx, args...).CombinedOutput()
	return string(out), err
}

// Program names a program that make has built.
func Program(name string) string { return filepath.Join(env.Root(), "bin", name) }

// readEnv reads what `lab env` prints for a shell.
func (l *Lab) readEnv(ctx context.Context) error {
	out, err := l.Run(ctx, "env")
	if err != nil {
		return fmt.Errorf("reading the lab's variables: %w: %s", err, out)
	}
	l.Env = map[string]string{}
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "="); ok {
			l.Env[name] = strings.Trim(value, "'")
		}
	}
	for _, name := range []string{"KUBECONFIG", "LAB_SIMULATOR", "LAB_BIN"} {
		if l.Env[name] == "" {
			return fmt.Errorf("lab env names no %s: %s", name, out)
		}
	}
	return nil
}
