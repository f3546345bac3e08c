// Package untaint takes the startup taint from this node when the agent is ready,
// where no controller does it.
//
// It does so once, for one node: its own. Whether the agent may is the API
// server's to decide, by a policy. It must not touch anything else of a node.
package untaint

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/startuptaint"
)

const (
	// look is how often readiness is looked at.
	look = time.Second
	// maxPause is the longest wait after a failure.
	maxPause = time.Minute
)

// Nodes reads and changes nodes; a typed client of nodes is one.
type Nodes interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Node, error)
	Patch(ctx context.Context, name string, kind types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (*corev1.Node, error)
}

// Options configure [Run].
type Options struct {
	Nodes     Nodes
	Node, Key string
	// Ready returns nil once the agent is ready.
	Ready func(context.Context) error
	Log   *slog.Logger
}

// Run waits until the agent is ready and takes the taint away. It ends when the
// node does not have it, or ctx has ended; failures are logged, and tried again.
func Run(ctx context.Context, o Options) {
	for pause := look; wait(ctx, pause); {
		if o.Ready(ctx) != nil {
			pause = look
			continue
		}
		err := remove(ctx, o)
		if err == nil || ctx.Err() != nil {
			return
		}
		o.Log.Warn("startup taint stays on the node", "taint", o.Key, "error", err)
		pause = min(2*pause, maxPause)
	}
}

func wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func remove(ctx context.Context, o Options) error {
	node, err := o.Nodes.Get(ctx, o.Node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", o.Node, err)
	}
	patch, err := startuptaint.Patch(node, o.Key)
	if err != nil || patch == nil {
		return err
	}
	if _, err := o.Nodes.Patch(ctx, o.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("taking the startup taint from node %s: %w", o.Node, err)
	}
	o.Log.Info("took the startup taint away: the agent is ready", "taint", o.Key)
	return nil
}
