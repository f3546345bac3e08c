// Command mic is the controller of pod identity.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
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
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return mic.Run(ctx, options)
}
