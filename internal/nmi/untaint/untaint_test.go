package untaint

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const key = "example.com/agent"

// node is an API server that knows one node, and fails as often as it is told.
// What it takes to write to a real one is tested with the chart.
type node struct {
	tainted      bool
	fails        int
	reads, wrote int
	patch        string
}

func (n *node) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Node, error) {
	n.reads++
	if n.fails > 0 {
		n.fails--
		return nil, errors.New("forbidden")
	}
	out := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "1"}}
	if n.tainted {
		out.Spec.Taints = []corev1.Taint{{Key: key}}
	}
	return out, nil
}

//nolint:revive // the client's own signature
func (n *node) Patch(_ context.Context, _ string, kind types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Node, error) {
	n.wrote, n.patch = n.wrote+1, string(kind)+" "+string(data)
	return nil, nil
}

func TestTheTaintGoesOnceTheAgentIsReady(t *testing.T) {
	for name, test := range map[string]struct {
		node     node
		readyIn  time.Duration
		min, max time.Duration
		wrote    int
	}{
		"ready at once": {node{tainted: true}, 0, time.Second, 2 * time.Second, 1},
		"ready later":   {node{tainted: true}, time.Hour, time.Hour, time.Hour + 2*time.Second, 1},
		"no taint":      {node{}, 0, time.Second, 2 * time.Second, 0},
		"an API server that says no, for a while": {node{tainted: true, fails: 10}, 0, 5 * time.Minute, 10 * time.Minute, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var log bytes.Buffer
				Run(t.Context(), Options{Nodes: &test.node, Node: "n", Key: key, Log: slog.New(slog.NewTextHandler(&log, nil)), Ready: func(context.Context) error {
					if time.Since(begin) < test.readyIn {
						return errors.New("not yet")
					}
					return nil
				}})
				if took := time.Since(begin); took < test.min || took > test.max {
					t.Errorf("it took %s", took)
				}
				if test.node.wrote != test.wrote || test.wrote > 0 && !strings.Contains(test.node.patch, `merge-patch+json {"metadata":{"resourceVersion":"1"},"spec":{"taints":null}}`) {
					t.Errorf("%d writes, the last %s", test.node.wrote, test.node.patch)
				}
				if test.node.reads > 11 {
					t.Errorf("%d reads", test.node.reads)
				}
			})
		})
	}
}

func TestAnAgentThatIsNeverReadyEndsAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		n := &node{tainted: true}
		Run(ctx, Options{Nodes: n, Node: "n", Key: key, Log: slog.New(slog.DiscardHandler), Ready: func(context.Context) error { return errors.New("not yet") }})
		if n.reads > 0 || n.wrote > 0 {
			t.Errorf("%d reads, %d writes", n.reads, n.wrote)
		}
	})
}
