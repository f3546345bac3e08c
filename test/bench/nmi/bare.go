package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// bareCommand makes this program the bare handler, a process of its own as NMI
// is.
const bareCommand = "bare"

// serveBare answers every request with the file's bytes, and decides nothing.
func serveBare(ctx context.Context, address, file string) error {
	body, err := os.ReadFile(file) //nolint:gosec // this program's own file
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	listener, err := obs.Listen(ctx, address, bareCommand)
	if err != nil {
		return err
	}
	return obs.Serve(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) //nolint:gosec // bytes of this program's own; who left needs none
	}), time.Second)
}
