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
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/aad-pod-identity/aad-pod-identity/test/labcli"
)

// suite is the lab that the tests share.
type suite struct {
	*labcli.Lab

	dir string // the lab's own folder
}

func newSuite(dir string) suite { return suite{Lab: labcli.New(dir), dir: dir} }

// install installs the chart as all tests want it.
func (s suite) install(ctx context.Context) error {
	return s.InstallChart(ctx, "--set", "mic.logVerbosity=5,nmi.logVerbosity=5")
}

var lab suite

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Earlier than go test's own end, which would leave the lab behind.
	ctx, cancel := context.WithTimeoutCause(ctx, 24*time.Minute, errors.New("the tests took too long"))
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
	lab = newSuite(filepath.Join(dir, "lab"))
	ended := make(chan int, 1)
	go func() { ended <- test(ctx, m) }()
	code := 1
	select {
	case code = <-ended:
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr, "giving up:", context.Cause(ctx))
	}
	return end(context.WithoutCancel(ctx), dir, code)
}

// test runs the tests in a lab with the chart installed, as a user would.
func test(ctx context.Context, m *testing.M) int {
	ctrllog.SetLogger(logr.Discard()) // what goes wrong comes back as an error
	err := lab.Up(ctx, os.Stderr, "--nodes", "3")
	if err == nil {
		err = lab.install(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// end removes the lab, and keeps what it says of a failure.
func end(ctx context.Context, dir string, code int) int {
	if code != 0 {
		evidence := filepath.Join(dir, "evidence")
		keepEvidence(ctx, evidence)
		fmt.Fprintln(os.Stderr, "logs and the journal are kept in", evidence)
	}
	if err := lab.Down(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code == 0 {
		_ = os.RemoveAll(dir) // a temporary folder
	}
	return code
}
