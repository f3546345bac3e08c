// Command mic tries the controller with violence: two processes of it, as they
// ship, fight over the lead against a real API server and an Azure at its
// documented limits and latencies, whose time is compressed. Pods come and go,
// others use the same subscription and the same resources, requests and
// operations get lost, and every few seconds a process is killed, ended, or frozen
// for longer than its lease.
//
// In the end every resource must carry what its pods need, what others attached,
// and nothing else, and every status must be true of it; and ARM must have
// refused no request that was the controller's own fault.
//
// What is tried follows from a seed; what the machine makes of it does not. The
// package must not try anything that users cannot meet.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctrllog.SetLogger(logr.Discard())
	o, err := parse(os.Args[1:])
	if err != nil {
		return 2 // said by the flags
	}
	if err := try(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "\nit did not hold:", err)
		return 1
	}
	fmt.Println("\nit held")
	return 0
}

// options are what the command line says.
type options struct {
	seed   uint64
	long   time.Duration
	factor float64
	mic    string // the program
	keep   string // a folder for logs, kept; empty: a new one, kept when it did not hold
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Uint64Var(&o.seed, "seed", 1, "what is tried follows from it")
	flags.DurationVar(&o.long, "for", 3*time.Minute, "how long trouble is made")
	flags.Float64Var(&o.factor, "clock-factor", 10, "compress Azure's time: 10 makes a minute of it 6 seconds")
	flags.StringVar(&o.mic, "mic", filepath.Join(env.Root(), "bin", "mic"), "the program to try")
	flags.StringVar(&o.keep, "keep", "", "keep the logs in this folder")
	if err := flags.Parse(args); err != nil {
		return o, fmt.Errorf("reading the command line: %w", err)
	}
	if o.long <= 0 || o.factor < 1 {
		err := fmt.Errorf("--for is %s and --clock-factor %g: want more than zero, and at least 1", o.long, o.factor)
		fmt.Fprintln(os.Stderr, err)
		return o, err
	}
	return o, nil
}

// try makes trouble and then holds what is there against what must be.
func try(ctx context.Context, o options) (err error) {
	dir, err := folder(o.keep)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || o.keep != "" {
			fmt.Println("logs are kept in", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	w, err := newWorld(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.trouble(ctx); err != nil {
		return err
	}
	if err := w.peace(ctx, "every pod has its identity"); err != nil {
		return err
	}
	if err := w.release(ctx); err != nil {
		return err
	}
	if err := w.peace(ctx, "nothing is left behind"); err != nil {
		return err
	}
	return w.judge()
}

func folder(keep string) (string, error) {
	if keep != "" {
		if err := os.MkdirAll(keep, 0o700); err != nil {
			return "", fmt.Errorf("making the folder of --keep: %w", err)
		}
		return keep, nil
	}
	dir, err := os.MkdirTemp("", "chaos-")
	if err != nil {
		return "", fmt.Errorf("making a folder: %w", err)
	}
	return dir, nil
}
