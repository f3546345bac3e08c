package main

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

// sizes are the numbers of the large scene.
type sizes struct {
	scaleSets, nodes, identities, labelled, others, teams, events int
}

func (o options) sizes() sizes {
	part := func(n int) int { return max(1, int(float64(n)*o.scale)) }
	s := sizes{scaleSets: 20, identities: 500, teams: 50}
	s.nodes, s.labelled, s.others, s.events = 20*part(250), 500*part(40), part(80_000), 1000
	return s
}

// Identity i is used on one scale set, and by one team. So are its pods.
func (s sizes) team(i int) string { return fmt.Sprintf("team-%02d", i%s.teams) }

func (s sizes) pod(i int) client.Object {
	id := i % s.identities
	onSet := s.nodes / s.scaleSets
	node := id%s.scaleSets + s.scaleSets*((i/s.identities)%onSet)
	return newPod(s.team(id), "app", i, nodeName(node), selector(id))
}

func (s sizes) other(i int) client.Object {
	return newPod(s.team(i), "other", i, nodeName(i%s.nodes), "")
}

// large starts MIC in a cluster of 5,000 nodes and 100,000 pods, first with
// everything to do, then with nothing, and then makes pods come and go.
func large(ctx context.Context, w *world) ([]report.Row, error) {
	s := w.options.sizes()
	if err := w.furnishLarge(ctx, s); err != nil {
		return nil, err
	}
	seen, stop, err := w.follow(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	rows := []report.Row{report.Title("(c) %d nodes, %d pods (%d labelled), %d identities, %d scale sets", s.nodes, s.labelled+s.others, s.labelled, s.identities, s.scaleSets)}
	for _, part := range []func(context.Context, sizes, *assignments) ([]report.Row, error){w.firstStart, w.restart, w.podEvents} {
		got, err := part(ctx, s, seen)
		rows = append(rows, got...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func (w *world) furnishLarge(ctx context.Context, s sizes) error {
	sayf("large: %d nodes, %d identities", s.nodes, s.identities)
	if err := w.azure.Furnish(s.scaleSets, s.identities); err != nil {
		return err
	}
	if err := each(ctx, s.teams, func(ctx context.Context, i int) error { return w.namespace(ctx, s.team(i)) }); err != nil {
		return err
	}
	if err := w.nodes(ctx, s.scaleSets, s.nodes/s.scaleSets); err != nil {
		return err
	}
	if err := each(ctx, s.identities, func(ctx context.Context, i int) error {
		return w.identity(ctx, client.ObjectKey{Namespace: s.team(i), Name: identityName(i)}, i, selector(i))
	}); err != nil {
		return err
	}
	sayf("large: %d pods without the label", s.others)
	if err := w.create(ctx, s.others, s.other); err != nil {
		return err
	}
	sayf("large: %d pods with the label", s.labelled)
	return w.create(ctx, s.labelled, s.pod)
}

// firstStart has 20,000 assignments to make.
func (w *world) firstStart(ctx context.Context, s sizes, seen *assignments) ([]report.Row, error) {
	sayf("large: MIC starts for the first time")
	begun := time.Now()
	if err := w.startMIC(ctx); err != nil {
		return nil, err
	}
	if err := seen.await(ctx, s.labelled); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if err := w.quiet(ctx, 5*time.Second); err != nil {
		return nil, err
	}
	peak, err := w.mic.Memory("VmHWM")
	if err != nil {
		return nil, err
	}
	cpu, err := w.mic.CPU()
	if err != nil {
		return nil, err
	}
	written, err := w.cluster.Written()
	if err != nil {
		return nil, err
	}
	return []report.Row{
		shown("first start: until all are Assigned, with ARM's time", "", seconds(took)),
		shown("first start: PATCHes for one scale set, at the most", "", fmt.Sprint(most(w.azure.Patches()))),
		shown("first start: writes to the API server", "", fmt.Sprintf("%d, %s", written.Total(), written.Refused())),
		shown("first start: MIC's CPU", "", seconds(cpu)),
		atMost("first start: peak memory (RSS)", "", peak, 600, "MiB"),
	}, w.mic.Stop()
}

// restart has nothing to do but to look.
func (w *world) restart(ctx context.Context, _ sizes, _ *assignments) ([]report.Row, error) {
	sayf("large: MIC starts again")
	if _, err := w.cluster.Written(); err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := w.startMIC(ctx); err != nil {
		return nil, err
	}
	led := time.Since(begun)
	const still = 3 * time.Second
	if err := w.quiet(ctx, still); err != nil {
		return nil, err
	}
	took := time.Since(begun) - still
	peak, errPeak := w.mic.Memory("VmHWM")
	now, errNow := w.mic.Memory("VmRSS")
	for _, err := range []error{errPeak, errNow} {
		if err != nil {
			return nil, err
		}
	}
	cpu, err := w.mic.CPU()
	if err != nil {
		return nil, err
	}
	written, err := w.cluster.Written()
	if err != nil {
		return nil, err
	}
	return []report.Row{
		shown("restart: until it leads", "", seconds(led)),
		shown("restart: until it has looked at everything", "", seconds(took)),
		exactly("restart: writes to the API server", "", written.Total(), 0),
		shown("restart: MIC's CPU", "", seconds(cpu)),
		atMost("restart: peak memory (RSS)", "", peak, 600, "MiB"),
		shown("restart: memory (RSS) at rest", "", figure(now, "MiB")),
	}, nil
}
