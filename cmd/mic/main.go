// Command mic is the controller of pod identity.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// By how much memory may grow between two collections, and, in bytes, the total
// from which on it may grow by less. What is kept is small beside what the chart
// grants, and half as many collections are a tenth of all that an event costs.
const (
	gcPercent   = 200
	memoryLimit = 448 << 20
)

func main() {
	if err := run(); err != nil && !mic.IsHelp(err) {
		fmt.Fprintln(os.Stderr, "mic:", err)
		os.Exit(1)
	}
}

func run() error {
	options, err := mic.ParseOptions(os.Args[1:], os.Stderr)
	if err != nil {
		return err
	}
	if options.ShowVersion {
		fmt.Println(options.Version)
		return nil
	}
	if options.Logger, err = obs.NewLogger(os.Stderr, options.Log); err != nil {
		return err
	}
	klog.SetSlogLogger(options.Logger)
	collectRarely()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return mic.Run(ctx, options)
}

// collectRarely leaves what the runtime's own variables say as it is.
func collectRarely() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
