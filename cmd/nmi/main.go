// Command nmi is the agent of a node: it answers the metadata requests of the
// node's pods with tokens of their own identities.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := nmi.Execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
