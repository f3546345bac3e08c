//go:build e2e

// Package lab_test proves the main job on the lab: real kubelets, containers,
// CNIs and kube-proxies, with MIC and NMI installed by the real helm from the
// chart.
//
// All tests share one lab of three nodes: node1 and node2 are instances of two
// scale sets, with pods on a bridge and on point-to-point links; node3 is a
// virtual machine. Each test uses a namespace and identities of its own. On
// failure the logs and the simulator's journal are kept.
package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// systemNamespace is where the chart is installed.
const systemNamespace = "kube-system"

// suite is the lab that the tests share.
type suite struct {
	dir  string // the lab's own folder
	env  map[string]string
	kube client.WithWatch
	sim  *control.Client
}

var lab *suite

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	if clientID, ok := os.LookupEnv(asProgram); ok {
		if err := printReading(ctx, clientID, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "lab-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	lab = &suite{dir: filepath.Join(dir, "lab")}
	defer func() {
		if code != 0 {
			lab.keepEvidence(ctx, filepath.Join(dir, "evidence"))
			fmt.Fprintln(os.Stderr, "logs and the journal are kept in", filepath.Join(dir, "evidence"))
		}
		if out, err := lab.cli(ctx, "down"); err != nil {
			fmt.Fprintln(os.Stderr, "removing the lab:", err, out)
			code = 1
		}
		if code == 0 {
			_ = os.RemoveAll(dir) // a temporary folder
		}
	}()
	if err := lab.start(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "starting the lab:", err)
		return 1
	}
	return m.Run()
}

// start brings the lab up and installs the chart, as a user would.
func (s *suite) start(ctx context.Context) error {
	if out, err := s.cli(ctx, "up", "--nodes", "3"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := s.readEnv(ctx); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.env["KUBECONFIG"])
	if err != nil {
		return err
	}
	config.QPS = -1
	log.SetLogger(logr.Discard()) // the client library's own
	if s.kube, err = client.NewWithWatch(config, client.Options{Scheme: env.Scheme()}); err != nil {
		return err
	}
	s.sim = control.New(s.env["LAB_SIMULATOR"], http.DefaultClient)
	out, err := s.helm(ctx, "install", "aad-pod-identity", filepath.Join(env.Root(), "charts", "aad-pod-identity"),
		"--namespace", systemNamespace, "--wait", "--timeout", "90s",
		"--set", "image.repository=lab.local/aad-pod-identity,image.imagePullPolicy=Never,mic.tag=dev,nmi.tag=dev",
		"--set", "mic.trustedCAConfigMap=lab-azure-ca,mic.logVerbosity=5,nmi.logVerbosity=5")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// readEnv reads what `lab env` prints for a shell.
func (s *suite) readEnv(ctx context.Context) error {
	out, err := s.cli(ctx, "env")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	s.env = map[string]string{}
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "="); ok {
			s.env[name] = strings.Trim(value, "'")
		}
	}
	if s.env["KUBECONFIG"] == "" || s.env["LAB_SIMULATOR"] == "" {
		return errors.New("lab env names no KUBECONFIG or no LAB_SIMULATOR: " + out)
	}
	return nil
}

// program names a program that make has built.
func program(name string) string { return filepath.Join(env.Root(), "bin", name) }

// cli runs the lab program on this suite's lab.
func (s *suite) cli(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program("lab"), append([]string{"--dir", s.dir}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *suite) helm(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program("helm"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.env["KUBECONFIG"])
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// kubectl runs the lab's own, which env finds by the lab's PATH.
func (s *suite) kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "env", append([]string{"kubectl"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.env["KUBECONFIG"], "PATH="+s.env["LAB_BIN"]+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// keepEvidence writes the logs of MIC and NMI, the lab's own, and the journal.
func (s *suite) keepEvidence(ctx context.Context, dir string) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	write := func(name, text string) { _ = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	for _, component := range []string{"mic", "nmi"} {
		out, _ := s.kubectl(ctx, "--namespace", systemNamespace, "logs", "--prefix", "--tail=-1", "--selector=app.kubernetes.io/component="+component) // what there is
		write(component+".log", out)
	}
	for _, component := range []string{"azuresim", "kube-apiserver", "kubelet", "containerd"} {
		out, _ := s.cli(ctx, "logs", component) // what there is
		write(component+".log", out)
	}
	if s.sim == nil {
		return
	}
	entries, err := s.sim.Journal(ctx, 0)
	var text strings.Builder
	for _, entry := range entries {
		fmt.Fprintln(&text, entry)
	}
	write("journal.txt", text.String()+fmt.Sprint(err))
}
