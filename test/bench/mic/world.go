package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// world is what one scene plays in.
type world struct {
	options options
	cluster *replica.Cluster
	azure   *replica.Azure
	mic     *replica.MIC
	started int // how often MIC was
	dir     string
}

func newWorld(ctx context.Context, o options, name string) (*world, error) {
	dir := filepath.Join(o.keep, name)
	if o.keep == "" {
		var err error
		if dir, err = os.MkdirTemp("", "bench-"+name+"-"); err != nil {
			return nil, fmt.Errorf("making a folder: %w", err)
		}
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of --keep: %w", err)
	}
	w := &world{options: o, dir: dir}
	var err error
	if w.cluster, err = replica.StartCluster(ctx, dir); err == nil {
		w.azure, err = replica.StartAzure(ctx, dir, azureOf(o.arm))
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) close() error {
	var failures []error
	if w.mic != nil {
		failures = append(failures, w.mic.Stop())
	}
	if w.azure != nil {
		failures = append(failures, w.azure.Close())
	}
	if w.cluster != nil {
		failures = append(failures, w.cluster.Close())
	}
	if w.options.keep == "" {
		failures = append(failures, os.RemoveAll(w.dir))
	}
	return errors.Join(failures...)
}

// azureOf is an Azure that limits nothing and whose changes take so long.
func azureOf(arm time.Duration) settings.Settings {
	return settings.Settings{ARM: settings.ARM{Latency: settings.Latency{ScaleSet: timing.Fixed(arm), VM: timing.Fixed(arm)}}}
}

// sayf tells how far a scene is.
func sayf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// atOnce is how many of the bench's own requests are in flight.
const atOnce = 64

// each calls do for every number below n, many at once.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// create makes n objects, many at once.
func (w *world) create(ctx context.Context, n int, object func(i int) client.Object) error {
	return each(ctx, n, func(ctx context.Context, i int) error {
		o := object(i)
		if err := w.cluster.Kube.Create(ctx, o); err != nil {
			return fmt.Errorf("creating %T %s: %w", o, client.ObjectKeyFromObject(o), err)
		}
		return nil
	})
}

// annotate edits the metadata of n objects, many at once.
func (w *world) annotate(ctx context.Context, n int, object func(i int) client.Object) error {
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"bench":"edited"}}}`))
	return each(ctx, n, func(ctx context.Context, i int) error {
		o := object(i)
		if err := w.cluster.Kube.Patch(ctx, o, patch); err != nil {
			return fmt.Errorf("editing %T %s: %w", o, client.ObjectKeyFromObject(o), err)
		}
		return nil
	})
}

// kill removes n pods as kubelets do.
func (w *world) kill(ctx context.Context, n int, pod func(i int) client.Object) error {
	return each(ctx, n, func(ctx context.Context, i int) error {
		if err := w.cluster.Kube.Delete(ctx, pod(i), client.GracePeriodSeconds(0)); err != nil {
			return fmt.Errorf("deleting a pod: %w", err)
		}
		return nil
	})
}

// assignments counts the AzureAssignedIdentities.
type assignments struct {
	stop func() // ends the counting

	mu       sync.Mutex
	assigned map[string]bool // by name: whether its state is Assigned
	sum      int             // of those that are
	ever     int             // how many were made
	changed  chan struct{}   // buffered by one
}

// follow starts to count. The counting ends with stop, which frees its memory for
// what is measured in this process.
func (w *world) follow(ctx context.Context) (a *assignments, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	bare := func(object any) (any, error) {
		full, ok := object.(*v1.AzureAssignedIdentity)
		if !ok {
			return object, nil
		}
		return &v1.AzureAssignedIdentity{
			ObjectMeta: metav1.ObjectMeta{Namespace: full.Namespace, Name: full.Name, UID: full.UID, ResourceVersion: full.ResourceVersion},
			Status:     v1.AzureAssignedIdentityStatus{Status: full.Status.Status},
		}, nil
	}
	c, err := cache.New(w.cluster.Config, cache.Options{Scheme: env.Scheme(), DefaultTransform: bare})
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("preparing to count assignments: %w", err)
	}
	a = &assignments{assigned: map[string]bool{}, changed: make(chan struct{}, 1)}
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = c.Start(ctx) // its watches say what is wrong
	}()
	informer, err := c.GetInformer(ctx, &v1.AzureAssignedIdentity{})
	if err == nil {
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) { a.set(o, 1) }, UpdateFunc: func(_, o any) { a.set(o, 0) }, DeleteFunc: a.remove,
		})
	}
	stop = func() { cancel(); <-ran }
	a.stop = stop
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("counting assignments: %w", err)
	}
	return a, stop, nil
}

func (a *assignments) set(object any, made int) {
	if o, ok := object.(*v1.AzureAssignedIdentity); ok {
		a.change(func() {
			a.put(o.Namespace+"/"+o.Name, o.Status.Status == v1.AssignedIDAssigned)
			a.ever += made
		})
	}
}

func (a *assignments) remove(object any) {
	if key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
		a.change(func() {
			a.put(key, false)
			delete(a.assigned, key)
		})
	}
}

// put notes whether one is Assigned; mu is held.
func (a *assignments) put(key string, assigned bool) {
	if a.assigned[key] {
		a.sum--
	}
	if a.assigned[key] = assigned; assigned {
		a.sum++
	}
}

func (a *assignments) change(do func()) {
	a.mu.Lock()
	do()
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// count returns how many there are, and how many of them are Assigned.
func (a *assignments) count() (all, assigned int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.assigned), a.sum
}

// made returns how many there are, and how many were ever made.
func (a *assignments) made() (all, ever int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.assigned), a.ever
}

// await waits until there are exactly so many, all of them Assigned.
func (a *assignments) await(ctx context.Context, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for {
		all, assigned := a.count()
		if all == want && assigned == want {
			return nil
		}
		select {
		case <-a.changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d assignments: %d there, %d Assigned: %w", want, all, assigned, ctx.Err())
		}
	}
}

// nodes makes so many nodes for each of so many scale sets, as a cloud provider
// and a kubelet fill them.
func (w *world) nodes(ctx context.Context, scaleSets, each int) error {
	return w.create(ctx, scaleSets*each, func(i int) client.Object {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{}}}
		node.Spec.ProviderID = fmt.Sprintf("azure://%s/virtualMachines/%d", replica.ScaleSetID(i%scaleSets), i/scaleSets)
		for n := range 40 {
			node.Status.Images = append(node.Status.Images, corev1.ContainerImage{
				Names: []string{fmt.Sprintf("registry.example.com/team-%d/program@sha256:%064x", n, n), fmt.Sprintf("registry.example.com/team-%d/program:v1.%d", n, n)}, SizeBytes: 1 << 27,
			})
		}
		return node
	})
}

func nodeName(i int) string { return fmt.Sprintf("aks-pool-%05d", i) }

// identity makes an AzureIdentity and its binding.
func (w *world) identity(ctx context.Context, key client.ObjectKey, managed int, selector string) error {
	meta := metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}
	for _, object := range []client.Object{
		&v1.AzureIdentity{ObjectMeta: meta, Spec: v1.AzureIdentitySpec{ResourceID: replica.ManagedID(managed), ClientID: replica.ClientID(managed)}},
		&v1.AzureIdentityBinding{ObjectMeta: meta, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: key.Name, Selector: selector}},
	} {
		if err := w.cluster.Kube.Create(ctx, object); err != nil {
			return fmt.Errorf("creating %T %s: %w", object, key, err)
		}
	}
	return nil
}

func (w *world) namespace(ctx context.Context, name string) error {
	if err := w.cluster.Kube.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return nil
}

// podName is a name as the API server makes one up for a pod of a ReplicaSet: it ends
// in five of its letters.
func podName(app string, i int) string {
	const letters = "bcdfghjklmnpqrstvwxz"
	end := make([]byte, 5)
	for at := range end {
		end[at], i = letters[i%len(letters)], i/len(letters)
	}
	return generateName(app) + string(end)
}

func generateName(app string) string { return app + "-5d5f8b7c9d-" }

// newPod is a pod of a common size; an empty selector leaves the label out.
func newPod(namespace, app string, i int, node, selector string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: generateName(app), Name: podName(app, i), Labels: map[string]string{
		"app.kubernetes.io/name": "program", "app.kubernetes.io/instance": namespace, "pod-template-hash": "5d5f8b7c9d",
	}}, Spec: corev1.PodSpec{NodeName: node}}
	if selector != "" {
		pod.Labels[v1.PodLabel] = selector
	}
	container := corev1.Container{Name: "program", Image: "registry.example.com/team/program:v1"}
	for n := range 10 {
		container.Env = append(container.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", n), Value: "some value of the program's own"})
	}
	pod.Spec.Containers = []corev1.Container{container}
	return pod
}

// startMIC starts MIC and waits until it leads.
func (w *world) startMIC(ctx context.Context) error {
	w.started++
	var err error
	if w.mic, err = replica.Start(ctx, replica.Options{Program: w.options.mic, Name: fmt.Sprintf("mic-%d", w.started), Cluster: w.cluster, Azure: w.azure}); err != nil {
		return err
	}
	return w.mic.AwaitLead(ctx)
}

// quiet waits until MIC has nothing to do and has written nothing for as long.
func (w *world) quiet(ctx context.Context, long time.Duration) error {
	since, last := time.Now(), int64(-1)
	return w.mic.Await(ctx, "MIC to be done", func() (bool, error) {
		text, err := w.mic.Get(ctx, w.mic.Metrics)
		if err != nil {
			return false, err
		}
		log, err := os.Stat(w.cluster.AuditLog())
		if err != nil {
			return false, fmt.Errorf("looking at the audit log: %w", err)
		}
		busy := replica.Sum(text, "workqueue_depth") + replica.Sum(text, "controller_runtime_active_workers")
		// A renewal of the Lease and the old lock is four lines of some 900 bytes, every
		// two seconds.
		if busy > 0 || log.Size() > last+16<<10 {
			since, last = time.Now(), log.Size()
		}
		return time.Since(since) >= long, nil
	})
}
