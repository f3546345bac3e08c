// Command demo shows the main job end to end on this machine: a program that
// only knows the Azure SDK reads a Key Vault secret with its pod's identity, in
// a real Kubernetes with a simulated Azure beside it.
//
// It must not be the place of any logic: what it shows is the lab's and the
// products' doing.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctrllog.SetLogger(logr.Discard()) // what goes wrong comes back as an error
	if err := show(ctx, os.Stdout, os.Getenv("KEEP") != ""); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		return 1
	}
	return 0
}
