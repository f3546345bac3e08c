package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// The steps of the main job, in the order in which they must be seen.
const (
	bound    = "pod bound to a node"
	created  = "AzureAssignedIdentity created"
	patched  = "PATCH sent to the scale set, with If-Match"
	assigned = "AzureAssignedIdentity is Assigned"
	token    = "the program in the pod has a token"
	secret   = "the program has read the secret"
)

// seen is one step, with its time and what was seen of it.
type seen struct {
	step, detail string
	at           time.Time
	err          error
}

// timeline applies the Deployment and prints each step as it happens. It fails
// if one is missing.
func (d *demo) timeline(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	steps := make(chan seen)
	last, err := d.lastEntry(ctx)
	if err != nil {
		return err
	}
	go d.watchAssignments(ctx, steps)
	go d.watchPatches(ctx, last, steps)
	go d.watchPod(ctx, steps)
	if err := d.deploy(ctx); err != nil {
		return err
	}
	missing := []string{bound, created, patched, assigned, token, secret}
	var start time.Time
	for len(missing) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("never seen: %s: %w", strings.Join(missing, ", "), ctx.Err())
		case s := <-steps:
			if s.err != nil {
				return s.err
			}
			if s.step == bound && start.IsZero() {
				start = s.at
			}
			if i := slices.Index(missing, s.step); i >= 0 {
				missing = slices.Delete(missing, i, i+1)
				fmt.Fprintf(d.out, "%5d ms  %s: %s\n", max(0, s.at.Sub(start).Milliseconds()), s.step, s.detail)
			}
		}
	}
	return nil
}

func (d *demo) lastEntry(ctx context.Context) (uint64, error) {
	entries, err := d.lab.Sim.Journal(ctx, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the journal: %w", err)
	}
	var last uint64
	for _, entry := range entries {
		last = max(last, entry.Seq)
	}
	return last, nil
}

// watchPod waits for the Deployment's pod to be bound, then reads its log.
func (d *demo) watchPod(ctx context.Context, steps chan<- seen) {
	isBound := func(p *corev1.Pod) bool { return p.Labels["app"] == "demo" && p.Spec.NodeName != "" }
	pod, err := objects.Await(ctx, d.lab.Kube, &corev1.PodList{}, isBound, client.InNamespace("default"))
	if err != nil {
		send(ctx, steps, seen{err: fmt.Errorf("waiting for the Deployment's pod: %w", err)})
		return
	}
	send(ctx, steps, seen{step: bound, detail: pod.Name + " to " + pod.Spec.NodeName, at: time.Now()})
	err = d.follow(ctx, pod.Name, func(line string) {
		switch {
		case strings.HasPrefix(line, "token: "):
			send(ctx, steps, seen{step: token, detail: strings.TrimPrefix(line, "token: "), at: time.Now()})
		case strings.HasPrefix(line, "secret: ") && strings.Contains(line, secretValue):
			send(ctx, steps, seen{step: secret, detail: strings.TrimPrefix(line, "secret: "), at: time.Now()})
		}
	})
	if err != nil {
		send(ctx, steps, seen{err: err})
	}
}

func (d *demo) watchAssignments(ctx context.Context, steps chan<- seen) {
	watcher, err := d.lab.Kube.Watch(ctx, &v1.AzureAssignedIdentityList{}, client.InNamespace(v1.DefaultAssignedIdentityNamespace))
	if err != nil {
		send(ctx, steps, seen{err: fmt.Errorf("watching AzureAssignedIdentities: %w", err)})
		return
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		object, ok := event.Object.(*v1.AzureAssignedIdentity)
		if !ok || !strings.HasPrefix(object.Spec.Pod, "demo-") {
			continue
		}
		switch object.Status.Status {
		case v1.AssignedIDCreated:
			send(ctx, steps, seen{step: created, detail: object.Name, at: time.Now()})
		case v1.AssignedIDAssigned:
			send(ctx, steps, seen{step: assigned, detail: "on " + object.Spec.NodeName, at: time.Now()})
		}
	}
}

// watchPatches takes the time of the request from the simulator's journal, which
// runs on this machine's clock.
func (d *demo) watchPatches(ctx context.Context, after uint64, steps chan<- seen) {
	entry, err := d.lab.Sim.Wait(ctx, after, func(e journal.Entry) bool {
		return e.Surface == journal.ARM && e.Method == http.MethodPatch && e.Status < 300 && len(e.Added) > 0 && e.IfMatch != ""
	})
	if err != nil {
		send(ctx, steps, seen{err: err})
		return
	}
	detail := fmt.Sprintf("%s, +%d identity; ARM takes 2 s here and 40-60 s in Azure", filepath.Base(entry.Path), len(entry.Added))
	send(ctx, steps, seen{step: patched, detail: detail, at: entry.Time})
}

func send(ctx context.Context, steps chan<- seen, s seen) {
	if ctx.Err() != nil {
		return
	}
	select {
	case steps <- s:
	case <-ctx.Done():
	}
}
