package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// replicas is how many controllers run at once.
const replicas = 2

// fleet keeps its replicas running, as a kubelet does, and now and then makes one
// of them end.
type fleet struct {
	world   *world
	random  *rand.Rand // of its own: when it ends one must not change what else is tried
	running [replicas]*replica.MIC
	started int

	killed, ended, frozen int
}

func startFleet(ctx context.Context, w *world) (*fleet, error) {
	f := &fleet{world: w, random: rand.New(rand.NewPCG(w.options.seed, 8))} //nolint:gosec // repeatable
	for i := range f.running {
		if err := f.start(ctx, i); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	return f, nil
}

// start starts the replica with its waits and limits on Azure's compressed time.
func (f *fleet) start(ctx context.Context, i int) error {
	f.started++
	factor := f.world.options.factor
	of := func(d time.Duration) string { return time.Duration(float64(d) / factor).String() }
	limit := func(perMinute float64, burst int) string { return fmt.Sprintf("%d/%d", int(perMinute*factor), burst) }
	var err error
	f.running[i], err = replica.Start(ctx, replica.Options{
		Program: f.world.options.mic, Name: fmt.Sprintf("mic-%03d", f.started), Cluster: f.world.cluster, Azure: f.world.azure,
		Flags: []string{
			"--leader-election-duration=" + lease.String(),
			"--arm-limit-refill=" + of(time.Minute), "--arm-poll-interval=" + of(5*time.Second),
			"--arm-update-limit-per-resource=" + limit(4, 12), "--arm-read-limit-per-resource=" + limit(12, 36),
			"--arm-update-limit-per-subscription=" + limit(500, 1500), "--arm-read-limit-per-subscription=" + limit(800, 2400),
			"--retry-min=" + of(time.Second), "--retry-max=" + of(5*time.Minute),
			"--quarantine-min=" + of(30*time.Second), "--quarantine-max=" + of(10*time.Minute),
			"--identity-assignment-reconcile-interval=" + of(3*time.Minute), "--arm-operation-timeout=" + of(30*time.Minute),
			"--v=5",
		},
	})
	return err
}

// tend makes trouble for the replicas until ctx ends, and then thaws what is
// frozen.
func (f *fleet) tend(ctx context.Context) error {
	for {
		if err := pause(ctx, time.Second+time.Duration(f.random.Int64N(int64(9*time.Second)))); err != nil {
			return nil //nolint:nilerr // peace
		}
		if err := f.revive(ctx); err != nil {
			return err
		}
		m := f.running[f.random.IntN(replicas)]
		switch dice := f.random.IntN(10); {
		case dice < 6:
			m.Kill()
			f.killed++
		case dice < 8:
			if err := m.Stop(); err != nil {
				return err
			}
			f.ended++
		default:
			if err := f.freeze(ctx, m); err != nil {
				return err
			}
		}
		if err := f.revive(ctx); err != nil {
			return err
		}
	}
}

// freeze lets a replica find out that it has slept for longer than its lease.
func (f *fleet) freeze(ctx context.Context, m *replica.MIC) error {
	f.frozen++
	if err := m.Freeze(); err != nil {
		return fmt.Errorf("freezing a replica: %w", err)
	}
	_ = pause(ctx, lease+lease/2)
	if err := m.Thaw(); err != nil {
		return fmt.Errorf("thawing a replica: %w", err)
	}
	return nil
}

// revive starts the replicas that have ended, also by themselves: one that has
// lost its lease does.
func (f *fleet) revive(ctx context.Context) error {
	for i, m := range f.running {
		select {
		case <-m.Done():
		default:
			continue
		}
		if err := f.start(context.WithoutCancel(ctx), i); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) close() error {
	var failures []error
	for _, m := range f.running {
		if m != nil {
			failures = append(failures, m.Stop())
		}
	}
	return errors.Join(failures...)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
}
