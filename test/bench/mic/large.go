package main

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

// sizes are the numbers of the large scene.
type sizes struct {
	scaleSets, nodes, identities, labelled, others, teams, events int
}

func (o options) sizes() sizes {
	part := func(n int) int { return max(1, int(float64(n)*o.scale)) }
	s := sizes{scaleSets: 20, identities: 500, teams: 50}
	s.nodes, s.labelled, s.others, s.events = 20*part(250), 500*part(40), part(80_000), part(1000)
	return s
}

// Identity i is used on one scale set, and by one team. So are its pods.
func (s sizes) team(i int) string { return fmt.Sprintf("team-%02d", i%s.teams) }

func (s sizes) pod(i int) client.Object {
	id := i % s.identities
	onSet := s.nodes / s.scaleSets
	node := id%s.scaleSets + s.scaleSets*((i/s.identities)%onSet)
	return newPod(s.team(id), fmt.Sprintf("app-%06d", i), nodeName(node), selector(id))
}

func (s sizes) other(i int) client.Object {
	return newPod(s.team(i), fmt.Sprintf("other-%06d", i), nodeName(i%s.nodes), "")
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

// podEvents makes pods change, come and go whose identities are there already, and
// then ends MIC and what seen is filled by.
func (w *world) podEvents(ctx context.Context, s sizes, seen *assignments) ([]report.Row, error) {
	atRest, err := w.atRest(ctx)
	if err != nil {
		return nil, err
	}
	sayf("large: %d pods change, come and go", s.events)
	used := w.meter()
	if err := w.annotate(ctx, s.events, func(i int) client.Object {
		pod := s.pod(i)
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.GetNamespace(), Name: pod.GetName()}}
	}); err != nil {
		return nil, err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	changes, err := used()
	if err != nil {
		return nil, err
	}
	used = w.meter()
	begun := time.Now()
	if err := w.comeAndGo(ctx, s, seen); err != nil {
		return nil, err
	}
	alone := atRest * time.Since(begun).Seconds()
	spent, err := used()
	if err != nil {
		return nil, err
	}
	if err := w.mic.Stop(); err != nil {
		return nil, err
	}
	seen.stop()
	one, err := w.writeCost(ctx)
	if err != nil {
		return nil, err
	}
	events, total := float64(2*s.events), spent.writes.Total()
	own := spent.cpu.Seconds() - alone - float64(total)*one.Seconds()
	return []report.Row{
		shown("a pod's change that means nothing: MIC's CPU", "", figure(changes.cpu.Seconds()*1000/float64(s.events), "ms")),
		shown("a pod that comes or goes: MIC's CPU", "1,440 ms", figure(spent.cpu.Seconds()*1000/events, "ms")),
		shown("  of that, its writes", "", figure(float64(total)*one.Seconds()*1000/events, "ms")),
		shown("  of that, what it spends in that time at rest", "", figure(alone*1000/events, "ms")),
		atMost("a pod that comes or goes: MIC's CPU beyond these", "", own*1000/events, 1, "ms"),
		shown("a pod that comes or goes: writes", "", figure(float64(total)/events, "")),
	}, nil
}

// writeCost is the processor time that the same client spends on one write of an
// assignment, the middle one of some rounds, measured on this process while MIC is
// stopped and nobody watches.
func (w *world) writeCost(ctx context.Context) (time.Duration, error) {
	var list v1.AzureAssignedIdentityList
	if err := w.cluster.Kube.List(ctx, &list, client.Limit(1)); err != nil || len(list.Items) == 0 {
		return 0, fmt.Errorf("looking for an assignment: there are %d: %w", len(list.Items), err)
	}
	const n = 300
	var rounds [7]time.Duration
	for round := range rounds {
		before, err := ownCPU()
		if err != nil {
			return 0, err
		}
		if err := each(ctx, n, func(ctx context.Context, i int) error { return w.writeThrice(ctx, i, list.Items[0].Spec) }); err != nil {
			return 0, err
		}
		after, err := ownCPU()
		if err != nil {
			return 0, err
		}
		rounds[round] = (after - before) / (3 * n)
	}
	sayf("large: one write costs %v", rounds)
	slices.Sort(rounds[:])
	return rounds[len(rounds)/2], nil
}

// writeThrice makes, changes and deletes an assignment.
func (w *world) writeThrice(ctx context.Context, i int, spec v1.AzureAssignedIdentitySpec) error {
	object := &v1.AzureAssignedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("cost-%d", i)}, Spec: spec}
	if err := w.cluster.Kube.Create(ctx, object); err != nil {
		return fmt.Errorf("creating an assignment: %w", err)
	}
	base := object.DeepCopy()
	object.Status.Status = v1.AssignedIDAssigned
	if err := w.cluster.Kube.Patch(ctx, object, client.MergeFrom(base)); err != nil {
		return fmt.Errorf("patching an assignment: %w", err)
	}
	if err := w.cluster.Kube.Delete(ctx, object); err != nil {
		return fmt.Errorf("deleting an assignment: %w", err)
	}
	return nil
}

func ownCPU() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("reading the processor time: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

// comeAndGo creates pods, waits for their assignments, and deletes them.
func (w *world) comeAndGo(ctx context.Context, s sizes, seen *assignments) error {
	more := func(i int) client.Object { return s.pod(s.labelled + i) }
	if err := w.create(ctx, s.events, more); err != nil {
		return err
	}
	if err := seen.await(ctx, s.labelled+s.events); err != nil {
		return err
	}
	if err := w.kill(ctx, s.events, more); err != nil {
		return err
	}
	if err := seen.await(ctx, s.labelled); err != nil {
		return err
	}
	return pause(ctx, 3*time.Second)
}
