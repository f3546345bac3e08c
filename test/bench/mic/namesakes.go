package main

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// The numbers of the namesakes scene: the old system's own load test.
const (
	namespaces    = 100
	namesakeNodes = 30
	namesakePods  = 20 // per namespace
	namesakeExtra = 200
)

// namesakes makes 100 namespaces with an AzureIdentity, a binding and pods of the
// same names, all with one selector, so that every binding selects every pod.
func namesakes(ctx context.Context, w *world) ([]report.Row, error) {
	sayf("namesakes: %d namespaces", namespaces)
	if err := w.furnishNamesakes(ctx); err != nil {
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
	sayf("namesakes: %d pods", namespaces*namesakePods)
	begun := time.Now()
	if err := w.create(ctx, namespaces*namesakePods, namesake); err != nil {
		return nil, err
	}
	if err := seen.await(ctx, namespaces*namesakePods); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if err := w.quiet(ctx, 5*time.Second); err != nil {
		return nil, err
	}
	all, ever := seen.made()
	rows := []report.Row{
		report.Title("(b2) %d namespaces with the same names and one selector, %d pods", namespaces, namespaces*namesakePods),
		exactly("assignments", "", all, namespaces*namesakePods),
		exactly("assignments ever made", "", ever, namespaces*namesakePods),
		shown("until all are Assigned", "", seconds(took)),
	}
	events, err := w.namesakeEvents(ctx, seen)
	return append(rows, events...), err
}

func (w *world) furnishNamesakes(ctx context.Context) error {
	if err := w.azure.Furnish(1, 1); err != nil {
		return err
	}
	if err := w.nodes(ctx, 1, namesakeNodes); err != nil {
		return err
	}
	return each(ctx, namespaces, func(ctx context.Context, i int) error {
		if err := w.namespace(ctx, namespace(i)); err != nil {
			return err
		}
		return w.identity(ctx, client.ObjectKey{Namespace: namespace(i), Name: "loadtest"}, 0, "loadtest")
	})
}

func namespace(i int) string { return fmt.Sprintf("namespace-%03d", i) }

func namesake(i int) client.Object {
	return newPod(namespace(i%namespaces), "pod", i/namespaces, nodeName(i%namesakeNodes), "loadtest")
}

// namesakeEvents makes more pods and takes them away again.
func (w *world) namesakeEvents(ctx context.Context, seen *assignments) ([]report.Row, error) {
	before, err := w.mic.Get(ctx, w.mic.Metrics)
	if err != nil {
		return nil, err
	}
	more := func(i int) client.Object { return namesake(namespaces*namesakePods + i) }
	used := w.meter()
	if err := w.create(ctx, namesakeExtra, more); err != nil {
		return nil, err
	}
	if err := seen.await(ctx, namespaces*namesakePods+namesakeExtra); err != nil {
		return nil, err
	}
	if err := w.kill(ctx, namesakeExtra, more); err != nil {
		return nil, err
	}
	if err := seen.await(ctx, namespaces*namesakePods); err != nil {
		return nil, err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	spent, err := used()
	if err != nil {
		return nil, err
	}
	after, err := w.mic.Get(ctx, w.mic.Metrics)
	if err != nil {
		return nil, err
	}
	const allocated = "go_memstats_alloc_bytes_total"
	bytes := replica.Sum(after, allocated) - replica.Sum(before, allocated)
	return []report.Row{
		shown("MIC's CPU for a pod that comes or goes, writes included", "2.4 s", figure(spent.cpu.Seconds()*1000/(2*namesakeExtra), "ms")),
		shown("memory allocated for it, writes included", "1.65 GB", figure(bytes/1024/(2*namesakeExtra), "KiB")),
	}, nil
}
