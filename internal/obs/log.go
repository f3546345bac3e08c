// Package obs is what both binaries share to be observed: how logs are set up
// and what their keys are called, and the listeners for probes and metrics.
//
// It must not know what is observed: metrics, health checks and messages belong
// to the packages whose state they show.
package obs

import (
	"fmt"
	"io"
	"log/slog"
)

// Log keys, one word for one thing in both binaries.
const (
	KeyPod       = "pod"
	KeyNode      = "node"
	KeyIdentity  = "identity"
	KeyBinding   = "binding"
	KeyResource  = "resource"
	KeyReason    = "reason"
	KeyAttempt   = "attempt"
	KeyRemote    = "remote"
	KeyStatus    = "status"
	KeyOperation = "operation"
)

// LogOptions are what a user sets of the logs.
type LogOptions struct {
	// Format is "text" or "json".
	Format string
	// Verbosity is klog's -v: 0 logs decisions and changes, 5 and more logs all.
	Verbosity int
}

// NewLogger returns a logger that writes to w. An unknown format is an error
// that names the known ones.
func NewLogger(w io.Writer, o LogOptions) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: slog.Level(-o.Verbosity)}
	switch o.Format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("log format %q is unknown: want text or json", o.Format)
}
