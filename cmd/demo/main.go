// Command demo is the program of the tutorials: it waits for a token of its
// pod's identity and reads a Key Vault secret with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	_ "golang.org/x/crypto/x509roots/fallback" // the image has no certificates of its own

	"github.com/aad-pod-identity/aad-pod-identity/internal/demo"
)

func main() { os.Exit(run()) }

func run() int {
	options, err := demo.ParseOptions(os.Args[1:], os.Stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = demo.Run(ctx, os.Stdout, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return 0
}
