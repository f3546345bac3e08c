package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// patience is how long things may take to be right once nobody disturbs them, of
// Azure's time: a request that hangs, a long backoff and an operation.
const patience = 20 * time.Minute

// peace waits until everything is as it must be.
func (w *world) peace(ctx context.Context, what string) error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(float64(patience)/w.options.factor)+2*lease)
	defer cancel()
	for {
		now, err := w.look(ctx)
		wrong := now.differences()
		if err == nil && len(wrong) == 0 {
			sayf("%s after %s", what, time.Since(begun).Round(100*time.Millisecond))
			return nil
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return errors.Join(fmt.Errorf("%s: not within %s:\n%s", what, time.Since(begun).Round(time.Second), strings.Join(wrong, "\n")), err)
		}
	}
}

// look takes down what is there.
func (w *world) look(ctx context.Context) (truth, error) {
	var pods corev1.PodList
	var assigned v1.AzureAssignedIdentityList
	var records v1.AzureIdentityAttachmentList
	kube := w.cluster.Kube
	if err := errors.Join(kube.List(ctx, &pods), kube.List(ctx, &assigned), kube.List(ctx, &records)); err != nil {
		return truth{}, fmt.Errorf("looking at the cluster: %w", err)
	}
	t := truth{needed: map[string]string{}, foreign: sets.KeySet(w.foreign), azure: sets.New[string](), assigned: assigned.Items, records: records.Items}
	for _, pod := range pods.Items {
		var node, identity int
		if _, err := fmt.Sscanf(pod.Spec.NodeName+" "+pod.Labels[v1.PodLabel], "node-%d identity-%d", &node, &identity); err != nil {
			return truth{}, fmt.Errorf("reading pod %s: %w", pod.Name, err)
		}
		t.needed[pod.Name] = place(resource(node), replica.ManagedID(identity))
	}
	azure := w.azure.Sim.State.Snapshot()
	for _, r := range append(append([]model.Resource{}, azure.ScaleSets...), azure.VirtualMachines...) {
		for _, id := range r.UserAssigned {
			t.azure.Insert(place(r.ID, id))
		}
	}
	return t, nil
}

// judge says what ARM saw.
func (w *world) judge() error {
	v := read(w.azure.Sim.Journal.Since(0), w.bursts)
	fmt.Printf("\n%d pods; %d requests to ARM, %d changes; others used its limits up %d times, and it refused %d requests for that, and %d for ours\n",
		w.made, v.requests, v.patches, w.bursts, v.refused, len(v.wrong))
	fmt.Printf("of the controllers %d were killed, %d ended, %d frozen; %d runs in all\n", w.fleet.killed, w.fleet.ended, w.fleet.frozen, w.fleet.started)
	if len(v.wrong) > 0 {
		return errors.New(strings.Join(v.wrong, "\n"))
	}
	return nil
}
