package main

import (
	"cmp"
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

// rounds is how often pods come and go, and a write is measured. The middle one
// counts: on a machine that others use, one alone says little.
const rounds = 5

// podEvents makes pods change, come and go whose identities are there already, and
// then ends MIC and what seen is filled by.
func (w *world) podEvents(ctx context.Context, s sizes, seen *assignments) ([]report.Row, error) {
	atRest, err := w.atRest(ctx)
	if err != nil {
		return nil, err
	}
	change, err := w.podChanges(ctx, s)
	if err != nil {
		return nil, err
	}
	all := make([]round, rounds)
	for i := range all {
		if all[i], err = w.comeAndGo(ctx, s, i, seen); err != nil {
			return nil, err
		}
		all[i].rest = atRest * all[i].took.Seconds() * 1000 / all[i].events
		sayf("large: %s", all[i])
	}
	if err := w.mic.Stop(); err != nil {
		return nil, err
	}
	seen.stop()
	slices.SortFunc(all, func(a, b round) int { return cmp.Compare(a.cpu-a.rest, b.cpu-b.rest) })
	typical := all[rounds/2]
	hasty, errHasty := w.writeCost(ctx, 0)
	paced, errPaced := w.writeCost(ctx, typical.pace)
	for _, err := range []error{errHasty, errPaced} {
		if err != nil {
			return nil, err
		}
	}
	// By the cheaper of the two, which leaves more to MIC.
	writing := typical.writes * min(hasty, paced).Seconds() * 1000
	return []report.Row{
		shown("a pod's change that means nothing: MIC's CPU", "", figure(change, "ms")),
		shown("a pod that comes or goes: MIC's CPU", "1,440 ms", figure(typical.cpu, "ms")),
		shown("  of that, its writes, at the lower price of the two below", "", figure(writing, "ms")),
		shown("  of that, what it spends in that time at rest", "", figure(typical.rest, "ms")),
		atMost("a pod that comes or goes: MIC's CPU beyond these", "", typical.cpu-typical.rest-writing, 1, "ms"),
		shown("a pod that comes or goes: writes", "", figure(typical.writes, "")),
		shown("one write, at MIC's pace", "", figure(paced.Seconds()*1000, "ms")),
		shown("one write, one hard after the other", "", figure(hasty.Seconds()*1000, "ms")),
	}, nil
}

// podChanges returns MIC's processor time, in ms, for the change of a pod that means
// nothing to it.
func (w *world) podChanges(ctx context.Context, s sizes) (float64, error) {
	n := min(s.events, s.labelled) // in a small scene there are fewer
	sayf("large: %d pods change", n)
	used := w.meter()
	if err := w.annotate(ctx, n, func(i int) client.Object {
		pod := s.pod(i)
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.GetNamespace(), Name: pod.GetName()}}
	}); err != nil {
		return 0, err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return 0, err
	}
	changes, err := used()
	return changes.cpu.Seconds() * 1000 / float64(n), err
}

// round is what some pods that came and went have cost.
type round struct {
	events    float64
	took      time.Duration
	cpu, rest float64 // ms, for one event
	writes    float64 // for one event
	pace      float64 // writes in a second, while there were events
}

func (r round) String() string {
	return fmt.Sprintf("%.0f pods came and went: %.2f ms and %.2f writes for an event, %.0f writes/s", r.events/2, r.cpu, r.writes, r.pace)
}

// comeAndGo creates pods, waits for their assignments, and deletes them.
func (w *world) comeAndGo(ctx context.Context, s sizes, turn int, seen *assignments) (round, error) {
	const calm = 3 * time.Second
	more := func(i int) client.Object { return s.pod(s.labelled + turn*s.events + i) }
	used, begun := w.meter(), time.Now()
	for _, part := range []func() error{
		func() error { return w.create(ctx, s.events, more) },
		func() error { return seen.await(ctx, s.labelled+s.events) },
		func() error { return w.kill(ctx, s.events, more) },
		func() error { return seen.await(ctx, s.labelled) },
		func() error { return pause(ctx, calm) },
	} {
		if err := part(); err != nil {
			return round{}, err
		}
	}
	took := time.Since(begun)
	spent, err := used()
	events, writes := float64(2*s.events), float64(spent.writes.Total())
	return round{
		events: events, took: took, cpu: spent.cpu.Seconds() * 1000 / events, writes: writes / events, pace: writes / (took - calm).Seconds(),
	}, err
}

// writeCost is the processor time that the same client spends on one write of an
// assignment, the middle one of some rounds, measured on this process while MIC is
// stopped and nobody watches. A pace is in writes per second; without one, each write
// follows hard on another, many at once, which is cheaper: what is not idle need not be
// woken.
func (w *world) writeCost(ctx context.Context, pace float64) (time.Duration, error) {
	var list v1.AzureAssignedIdentityList
	if err := w.cluster.Kube.List(ctx, &list, client.Limit(1)); err != nil || len(list.Items) == 0 {
		return 0, fmt.Errorf("looking for an assignment: there are %d: %w", len(list.Items), err)
	}
	const n = 300
	idle, err := busy(func() error { return pause(ctx, 5*time.Second) })
	if err != nil {
		return 0, err
	}
	var costs [rounds]time.Duration
	for i := range costs {
		begun := time.Now()
		used, err := busy(func() error {
			return paced(ctx, pace/3, n, func(ctx context.Context, i int) error { return w.writeThrice(ctx, i, list.Items[0].Spec) })
		})
		if err != nil {
			return 0, err
		}
		costs[i] = (used - time.Duration(float64(idle)*time.Since(begun).Seconds()/5)) / (3 * n)
	}
	sayf("large: one write costs %v", costs)
	slices.Sort(costs[:])
	return costs[rounds/2], nil
}

// busy is the processor time that this process spends while do runs.
func busy(do func() error) (time.Duration, error) {
	before, err := ownCPU()
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := ownCPU()
	return after - before, err
}

// paced calls do for every number below n, so many in a second; without a pace,
// without a pause.
func paced(ctx context.Context, pace float64, n int, do func(ctx context.Context, i int) error) error {
	if pace <= 0 {
		return each(ctx, n, do)
	}
	begun := time.Now()
	return each(ctx, n, func(ctx context.Context, i int) error {
		due := time.Duration(float64(i) / pace * float64(time.Second))
		if err := pause(ctx, due-time.Since(begun)); err != nil {
			return err
		}
		return do(ctx, i)
	})
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
