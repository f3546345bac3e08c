package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"
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

// timeline runs the demo pod and prints each step as it happens. It fails if one
// is missing.
func timeline(ctx context.Context, out io.Writer, w *world.World) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	steps := make(chan seen)
	before, err := w.Sim.Journal(ctx, 0)
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	var last uint64
	for _, entry := range before {
		last = max(last, entry.Seq)
	}
	go watchAssignments(ctx, w, steps)
	go watchPatches(ctx, w, last, steps)

	pod, err := runDemoPod(ctx, w)
	if err != nil {
		return err
	}
	start := time.Now()
	fmt.Fprintf(out, "%8s  %s: %s\n", "0 ms", bound, pod.Node.Name)
	go runProgram(ctx, pod, steps)

	missing := []string{created, patched, assigned, token, secret}
	for len(missing) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("never seen: %s: %w", strings.Join(missing, ", "), ctx.Err())
		case s := <-steps:
			if s.err != nil {
				return s.err
			}
			if i := slices.Index(missing, s.step); i >= 0 {
				missing = slices.Delete(missing, i, i+1)
				fmt.Fprintf(out, "%5d ms  %s: %s\n", s.at.Sub(start).Milliseconds(), s.step, s.detail)
			}
		}
	}
	return nil
}

func runDemoPod(ctx context.Context, w *world.World) (*world.Pod, error) {
	text, err := example(w, "pod.yaml")
	if err != nil {
		return nil, err
	}
	object := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
		return nil, fmt.Errorf("reading the tutorial's pod: %w", err)
	}
	return w.Nodes[1].Run(ctx, object)
}

func watchAssignments(ctx context.Context, w *world.World, steps chan<- seen) {
	watcher, err := w.Kube.Watch(ctx, &v1.AzureAssignedIdentityList{}, client.InNamespace(v1.DefaultAssignedIdentityNamespace))
	if err != nil {
		send(ctx, steps, seen{err: fmt.Errorf("watching AzureAssignedIdentities: %w", err)})
		return
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		object, ok := event.Object.(*v1.AzureAssignedIdentity)
		if !ok || object.Spec.Pod != "demo" {
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
func watchPatches(ctx context.Context, w *world.World, after uint64, steps chan<- seen) {
	entry, err := w.Sim.Wait(ctx, after, func(e journal.Entry) bool {
		return e.Surface == journal.ARM && e.Method == http.MethodPatch && e.Status < 300 && len(e.Added) > 0 && e.IfMatch != ""
	})
	if err != nil {
		send(ctx, steps, seen{err: err})
		return
	}
	detail := fmt.Sprintf("%s, +%d identity; ARM takes %s here and 40-60 s in Azure", filepath.Base(entry.Path), len(entry.Added), armLatency)
	send(ctx, steps, seen{step: patched, detail: detail, at: entry.Time})
}

func runProgram(ctx context.Context, pod *world.Pod, steps chan<- seen) {
	cmd := pod.Command(ctx, filepath.Join(env.Root(), "bin", "demo"), append(pod.Object.Spec.Containers[0].Args, "--show-value")...)
	output, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = cmd.Stdout
		err = pod.Start(cmd)
	}
	if err != nil {
		send(ctx, steps, seen{err: fmt.Errorf("starting the demo program: %w", err)})
		return
	}
	var all strings.Builder
	for lines := bufio.NewScanner(output); lines.Scan(); {
		line := lines.Text()
		all.WriteString(line + "\n")
		switch {
		case strings.HasPrefix(line, "token: "):
			send(ctx, steps, seen{step: token, detail: strings.TrimPrefix(line, "token: "), at: time.Now()})
		case strings.HasPrefix(line, "secret: ") && strings.Contains(line, world.SecretValue):
			send(ctx, steps, seen{step: secret, detail: strings.TrimPrefix(line, "secret: "), at: time.Now()})
		}
	}
	if err := cmd.Wait(); err != nil {
		send(ctx, steps, seen{err: fmt.Errorf("the demo program failed: %w:\n%s", err, all.String())})
	}
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

// refused runs the program in a pod that no binding selects. It must fail, and
// its words must say why.
func refused(ctx context.Context, out io.Writer, w *world.World) error {
	pod, err := w.Nodes[1].Run(ctx, world.NewPod("default", "stranger", nil))
	if err != nil {
		return err
	}
	cmd := pod.Command(ctx, filepath.Join(env.Root(), "bin", "demo"), "--vault-url="+world.VaultURL, "--client-id="+w.Cloud.Demo.ClientID, "--timeout=60s")
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := pod.Start(cmd); err != nil {
		return fmt.Errorf("starting the demo program: %w", err)
	}
	if err := cmd.Wait(); err == nil {
		return errors.New("the pod without a binding got a token")
	}
	text := output.String()
	if !strings.Contains(text, "Identity not found") || !strings.Contains(text, v1.PodLabel) {
		return fmt.Errorf("the refusal does not say why:\n%s", text)
	}
	for line := range strings.Lines(text) {
		fmt.Fprintln(out, "   |", strings.TrimRight(line, "\n"))
	}
	return nil
}
