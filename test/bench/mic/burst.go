package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// The numbers of the burst scene.
const (
	burstScaleSets = 4
	burstNodes     = 10 // per scale set
	burstSelectors = 100
	burstPods      = 2000
)

const apps = "apps"

// burst makes 2,000 pods at once that need 100 identities on each of 4 scale
// sets, waits until all have theirs, and then makes 500 events that change
// nothing.
func burst(ctx context.Context, w *world) ([]report.Row, error) {
	if err := w.furnishBurst(ctx); err != nil {
		return nil, err
	}
	if err := w.startMIC(ctx); err != nil {
		return nil, err
	}
	seen, stop, err := w.follow(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := w.quiet(ctx, 3*time.Second); err != nil {
		return nil, err
	}
	if _, err := w.cluster.Written(); err != nil {
		return nil, err
	}
	sayf("burst: %d pods", burstPods)
	used, begun := w.meter(), time.Now()
	if err := w.create(ctx, burstPods, burstPod); err != nil {
		return nil, err
	}
	created := time.Since(begun)
	if err := seen.await(ctx, burstPods); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if err := w.quiet(ctx, 5*time.Second); err != nil {
		return nil, err
	}
	spent, err := used()
	if err != nil {
		return nil, err
	}
	patches := most(w.azure.Patches())
	beyond := took - time.Duration(patches)*w.options.arm
	rows := []report.Row{
		report.Title("(b) %d pods of %d selectors on %d scale sets, at once", burstPods, burstSelectors, burstScaleSets),
		atMost("PATCHes for one scale set, at the most", "", float64(patches), 2, ""),
		atMost("until all are Assigned, beyond ARM's own time", "over 800 s", beyond.Seconds(), 60, "s"),
		shown("until the API server had all pods", "", seconds(created)),
		shown("MIC's CPU", "", seconds(spent.cpu)),
		shown("writes to the API server", "3 per pod", fmt.Sprintf("%.1f per pod, %s", float64(spent.writes.Total())/burstPods, spent.writes.Refused())),
	}
	idle, err := w.idle(ctx)
	return append(rows, idle...), err
}

func (w *world) furnishBurst(ctx context.Context) error {
	sayf("burst: nodes and identities")
	if err := w.azure.Furnish(burstScaleSets, burstSelectors); err != nil {
		return err
	}
	if err := w.namespace(ctx, apps); err != nil {
		return err
	}
	if err := w.nodes(ctx, burstScaleSets, burstNodes); err != nil {
		return err
	}
	return each(ctx, burstSelectors, func(ctx context.Context, i int) error {
		return w.identity(ctx, client.ObjectKey{Namespace: apps, Name: identityName(i)}, i, selector(i))
	})
}

func identityName(i int) string { return fmt.Sprintf("identity-%04d", i) }
func selector(i int) string     { return fmt.Sprintf("selector-%04d", i) }

// burstPod spreads the pods of each selector over all scale sets.
func burstPod(i int) client.Object {
	node := (7*i + i/burstSelectors) % (burstScaleSets * burstNodes)
	return newPod(apps, "web", i, nodeName(node), selector(i%burstSelectors))
}

// idle makes 500 events that concern no assignment: the old controller went
// through its whole cycle at each of them.
func (w *world) idle(ctx context.Context) ([]report.Row, error) {
	const n = 100
	other := func(i int) client.Object {
		return newPod(apps, "other", i, nodeName(i%burstNodes), "")
	}
	meta := func(i int) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: apps, Name: identityName(i)} }
	atRest, err := w.atRest(ctx)
	if err != nil {
		return nil, err
	}
	sayf("idle: 500 events that change nothing")
	used, begun := w.meter(), time.Now()
	for _, event := range []func() error{
		func() error { return w.create(ctx, n, other) },
		func() error { return w.kill(ctx, n, other) },
		func() error {
			return w.annotate(ctx, n, func(i int) client.Object {
				return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: apps, Name: podName("web", i)}}
			})
		},
		func() error {
			return w.annotate(ctx, n, func(i int) client.Object { return &v1.AzureIdentity{ObjectMeta: meta(i)} })
		},
		func() error {
			return w.annotate(ctx, n, func(i int) client.Object { return &v1.AzureIdentityBinding{ObjectMeta: meta(i)} })
		},
	} {
		if err := event(); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, 3*time.Second); err != nil { // asking MIC whether it is done would cost it more than the events
		return nil, err
	}
	took := time.Since(begun)
	spent, err := used()
	if err != nil {
		return nil, err
	}
	alone := atRest * took.Seconds()
	return []report.Row{
		report.Title("(a) 500 events that change nothing, among %d pods and %d bindings", burstPods, burstSelectors),
		shown("MIC's CPU meanwhile", "", seconds(spent.cpu)),
		shown("  of that, what it spends in that time at rest: locks and timers", "", figure(alone, "s")),
		atMost("  and what the events cost", "56.8 s", spent.cpu.Seconds()-alone, 0.1, "s"),
		exactly("writes to the API server", "", spent.writes.Total(), 0),
	}, nil
}

// atRest is the share of a processor that MIC uses while nothing happens.
func (w *world) atRest(ctx context.Context) (float64, error) {
	const long = 20 * time.Second
	sayf("at rest for %s", long)
	used, begun := w.meter(), time.Now()
	if err := pause(ctx, long); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	spent, err := used()
	return spent.cpu.Seconds() / took.Seconds(), err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
}

// spent is what MIC used for something.
type spent struct {
	cpu    time.Duration
	writes replica.Writes
}

// meter begins to measure; what it returns says what MIC has used since.
func (w *world) meter() func() (spent, error) {
	before, errBefore := w.mic.CPU()
	_, errWritten := w.cluster.Written()
	return func() (spent, error) {
		after, err := w.mic.CPU()
		for _, e := range []error{errBefore, errWritten, err} {
			if e != nil {
				return spent{}, e
			}
		}
		written, err := w.cluster.Written()
		return spent{cpu: after - before, writes: written}, err
	}
}

func seconds(d time.Duration) string { return figure(d.Seconds(), "s") }
