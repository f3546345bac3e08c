// Command azuresim runs a simulated Azure: ARM, Entra, Key Vault and the
// metadata service of nodes, with a control API to set it up.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

func main() { os.Exit(run()) }

func run() int {
	options, err := azuresim.ParseOptions(os.Args[1:], os.Stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = azuresim.Run(ctx, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "azuresim:", err)
		return 1
	}
	return 0
}
