// Package e2e_test proves the main job on the world of test/world: a pod gets
// its own identity's token by way of a real API server, MIC, nftables and NMI.
//
// All tests share one world; each makes objects and pods of its own names.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// suite is what the tests share: the world, MIC on node-1 and an NMI per node.
type suite struct {
	*world.World
	mic *world.MIC
	nmi []*world.Process
}

var shared *suite

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if id, ok := os.LookupEnv(asProgram); ok {
		return check(printToken(ctx, parseID(id)))
	}
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if code == 0 {
			code = check(os.RemoveAll(dir))
			return
		}
		fmt.Fprintln(os.Stderr, "logs are kept in", dir)
	}()
	shared, err = start(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting the world:", err)
		return 1
	}
	code = m.Run()
	return max(code, check(unexpected(ctx)), check(shared.Close()))
}

// unexpected reports every request that Azure does not offer: whatever the
// answer was, a product that sends one is wrong.
func unexpected(ctx context.Context) error {
	entries, err := shared.Sim.Journal(ctx, 0)
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if entry.Unexpected {
			errs = append(errs, fmt.Errorf("unexpected request: %s", entry))
		}
	}
	return errors.Join(errs...)
}

func check(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func start(ctx context.Context, dir string) (*suite, error) {
	w, err := world.New(ctx, world.Options{
		Programs: filepath.Join(env.Root(), "bin"), Kubernetes: env.Assets(), Dir: dir, ARMLatency: 300 * time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	s := &suite{World: w, nmi: make([]*world.Process, len(w.Nodes))}
	w.Nodes[1].RedirectTarget = "link"
	for i, node := range w.Nodes {
		if s.nmi[i], err = node.StartNMI(ctx, "standard"); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	// Nobody starts MIC again here, as a kubelet would, when it loses its lease
	// while a test keeps the API server away: it may not lose it.
	if s.mic, err = w.StartMIC(ctx, w.Nodes[0], "--leader-election-duration=2m"); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return s, nil
}
