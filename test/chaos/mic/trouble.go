package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// mostPods live at once.
const mostPods = 40

// trouble is made of the cluster, of Azure and of the replicas at once.
func (w *world) trouble(ctx context.Context) error {
	sayf("trouble for %s, which are %s of Azure's time (seed %d)", w.options.long, time.Duration(float64(w.options.long)*w.options.factor), w.options.seed)
	ctx, cancel := context.WithTimeout(ctx, w.options.long)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.fleet.tend(ctx) })
	group.Go(func() error {
		every := time.Duration(float64(4*time.Second) / w.options.factor)
		for pause(ctx, time.Duration(w.random.Int64N(int64(every)))) == nil {
			if err := w.step(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	w.azure.Sim.Faults.Clear()
	return w.fleet.revive(context.WithoutCancel(ctx))
}

func (w *world) step(ctx context.Context) error {
	n := w.random.IntN(scaleSets + machines)
	switch dice := w.random.IntN(100); {
	case dice < 45:
		return w.pod(ctx, n)
	case dice < 90:
		return w.kill(ctx)
	case dice < 95:
		w.attach(n)
		return nil
	case dice < 96:
		return w.burst(ctx, n)
	}
	return w.fail(n)
}

// pod makes a pod on a node, unless there are many.
func (w *world) pod(ctx context.Context, node int) error {
	if len(w.pods) >= mostPods {
		return nil
	}
	w.made++
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: fmt.Sprintf("pod-%d", w.made),
		Labels: map[string]string{v1.PodLabel: identityName(w.random.IntN(identities))},
	}, Spec: corev1.PodSpec{NodeName: nodeName(node), Containers: []corev1.Container{{Name: "program", Image: "registry.example.com/program:v1"}}}}
	if err := w.cluster.Kube.Create(ctx, pod); err != nil {
		return fmt.Errorf("creating a pod: %w", err)
	}
	w.pods = append(w.pods, pod.Name)
	return nil
}

// kill removes a pod as a kubelet does, unless there are few.
func (w *world) kill(ctx context.Context) error {
	if len(w.pods) < mostPods/4 {
		return nil
	}
	return w.remove(ctx, w.random.IntN(len(w.pods)))
}

func (w *world) remove(ctx context.Context, i int) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: w.pods[i]}}
	if err := w.cluster.Kube.Delete(ctx, pod, client.GracePeriodSeconds(0)); err != nil {
		return fmt.Errorf("deleting a pod: %w", err)
	}
	w.pods = slices.Delete(w.pods, i, i+1)
	return nil
}

// release removes every pod.
func (w *world) release(ctx context.Context) error {
	sayf("peace, and no pods")
	for len(w.pods) > 0 {
		if err := w.remove(ctx, len(w.pods)-1); err != nil {
			return err
		}
	}
	return nil
}

// attach is somebody else's doing.
func (w *world) attach(n int) {
	attachment := model.Attachment{ScaleSet: resource(n), Identity: replica.ManagedID(identities + w.random.IntN(2))}
	if n >= scaleSets {
		attachment.ScaleSet, attachment.VM = "", resource(n)
	}
	if _, err := w.azure.Sim.State.Attach(attachment); err == nil { // else an operation runs
		w.foreign[strings.ToLower(resource(n)+" "+attachment.Identity)] = true
	}
}

// burst is another client that leaves little or nothing in the buckets.
func (w *world) burst(ctx context.Context, n int) error {
	w.bursts++
	burst := model.Burst{ScaleSet: resource(n), Verb: []string{"get", "update"}[w.random.IntN(2)], Requests: 1 + w.random.IntN(3000), OnlySubscription: w.random.IntN(3) == 0}
	if n >= scaleSets {
		burst.ScaleSet, burst.VM = "", resource(n)
	}
	if _, err := w.azure.Control.Burst(ctx, burst); err != nil {
		return fmt.Errorf("using up the limits: %w", err)
	}
	return nil
}

// fail lets the next request of a kind go wrong.
func (w *world) fail(n int) error {
	on := resource(n)
	hang := fault.Duration(float64(10*time.Minute) / w.options.factor)
	faults := []fault.Fault{
		{Match: fault.Match{Method: http.MethodPatch, Path: on}, Response: fault.Response{Drop: true}},
		{Match: fault.Match{Method: http.MethodPatch, Path: on}, Response: fault.Response{LoseAnswer: true}},
		{Match: fault.Match{Method: http.MethodPatch, Path: on}, Response: fault.Response{LoseOperation: true}},
		{Match: fault.Match{Method: http.MethodPatch, Path: on}, Response: fault.Response{FailOperation: true, Code: "InternalOperationError", Message: "oops"}},
		{Match: fault.Match{Method: http.MethodGet, Path: on}, Response: fault.Response{Status: http.StatusServiceUnavailable, Code: "ServerBusy", Message: "later", Headers: map[string]string{"Retry-After": "1"}}},
		{Match: fault.Match{Method: http.MethodGet, Path: on}, Response: fault.Response{LoseAnswer: true}},
		{Match: fault.Match{Method: http.MethodGet, Path: "*/operations/*"}, Response: fault.Response{Status: http.StatusNotFound, Code: "NotFound", Message: "The entity was not found."}},
		{Match: fault.Match{Method: http.MethodGet, Path: "*/operations/*"}, Response: fault.Response{Delay: hang, Drop: true}},
	}
	chosen := faults[w.random.IntN(len(faults))]
	chosen.Match.Surface, chosen.Times = journal.ARM, 1
	if _, err := w.azure.Sim.Faults.Add(chosen); err != nil {
		return fmt.Errorf("adding a fault: %w", err)
	}
	return nil
}

// sayf tells how far it is.
func sayf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
