package scenarios_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/test/scenarios"
)

// patience is how long a step may take.
const patience = 90 * time.Second

// hold keeps a pod that terminates.
const hold = "scenarios.test/hold"

// TestInACluster plays every story against a real API server, the simulated Azure
// and the real controller: most of them at once, and those that restart it, or
// come before it, one by one.
func TestInACluster(t *testing.T) {
	var shared, own []scenarios.Scenario
	for _, s := range load(t) {
		switch {
		case s.Only == scenarios.Pure:
		case s.NeedsItsOwn():
			own = append(own, s)
		default:
			shared = append(shared, s)
		}
	}
	t.Run("together", func(t *testing.T) {
		w := newWorld(t, shared)
		w.run(t, scenarios.Install{})
		t.Run("all", func(t *testing.T) { // ends when the last of them has
			for _, s := range shared {
				t.Run(s.Name, func(t *testing.T) {
					t.Parallel()
					newCluster(w, s).play(t, func() {})
				})
			}
		})
	})
	for _, s := range own {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []scenarios.Scenario{s})
			c := newCluster(w, s)
			c.play(t, func() { c.stop = w.run(t, s.Install) })
		})
	}
}

// cluster plays one story in a world.
type cluster struct {
	scenarios.Place
	*world
	sentinel scenarios.Place
	before   did // what had been written before the step
	since    uint64
	stop     func() // ends the controller, if it is the story's own
	awaited  int
}

func newCluster(w *world, s scenarios.Scenario) *cluster {
	p := scenarios.NewPlace(s)
	return &cluster{Place: p, world: w, sentinel: scenarios.Place{Prefix: p.Prefix + sentinelPrefix, Scenario: scenarios.Scenario{
		Given: scenarios.Given{Azure: scenarios.Azure{
			Identities: map[string]scenarios.Managed{"s": {}}, ScaleSets: map[string]scenarios.Resource{"s": {}},
		}},
	}}}
}

// play sets the story up, calls begin, and goes through its steps.
func (c *cluster) play(t *testing.T, begin func()) {
	t.Helper()
	for _, p := range []scenarios.Place{c.Place, c.sentinel} {
		if _, err := c.sim.State.Add(p.Document()); err != nil {
			t.Fatal(err)
		}
	}
	c.create(t, c.sentinel.Node("s", scenarios.Node{Of: "s"}))
	for _, old := range c.Given.Old {
		c.create(t, c.OldAssignment(old))
	}
	c.await(t, "what the archived controller left", func() string {
		return strings.Repeat("one more", len(c.Given.Old)-len(c.assignments(t, c.Prefix)))
	})
	letGo := c.begin(c.Steps[0])
	c.join(t, c.Given.Nodes)
	c.put(t, c.Given.Objects)
	begin()
	for i, step := range c.Steps {
		if i > 0 {
			letGo = c.begin(step)
		}
		var refusal error
		for _, e := range step.Do {
			if refusal = c.edit(t, e); refusal != nil {
				break
			}
		}
		if step.Refused == "" && refusal != nil || step.Refused != "" && (refusal == nil || !strings.Contains(refusal.Error(), step.Refused)) {
			t.Fatalf("%s: step %d, %s: got %v, want a refusal that says %q", c.File, i+1, step.Name, refusal, step.Refused)
		}
		c.gather(t, step)
		letGo()
		for range 2 { // the second look is after everything of the first was heard of
			c.await(t, fmt.Sprintf("%s: step %d, %s", c.File, i+1, step.Name), func() string { return c.differs(t, step.Expect) })
			c.settle(t)
		}
	}
}

// begin starts to count, and holds the story where requests are counted.
func (c *cluster) begin(step scenarios.Step) (letGo func()) {
	c.mu.Lock()
	c.before = *c.counts(c.Prefix)
	c.mu.Unlock()
	c.since = 0
	if all := c.sim.Journal.Since(0); len(all) > 0 {
		c.since = all[len(all)-1].Seq
	}
	if len(step.Expect.Patches) == 0 {
		return func() {}
	}
	return c.arm.hold(c.Prefix)
}

// gather waits until the controller knows all that is wanted after a step whose
// requests are counted: the sentinel's assignment comes after the others.
func (c *cluster) gather(t *testing.T, step scenarios.Step) {
	t.Helper()
	if len(step.Expect.Patches) == 0 {
		return
	}
	if step.Expect.Pods != nil {
		c.await(t, c.File+": the assignments", func() string { return c.outcome(t).lacks(c.Place, step.Expect) })
	}
	c.settle(t)
}

// await waits until there is no difference any more.
func (c *cluster) await(t *testing.T, what string, differs func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		changed := c.next(c.Prefix)
		diff := differs()
		if diff == "" {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: after %s still:\n%s", what, patience, diff)
		}
	}
}

// settle waits until the controller has dealt with an identity, a binding and a
// pod that came after everything else: what it has not done by then it does not
// mean to do.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	c.awaited++
	name := fmt.Sprintf("s%d", c.awaited)
	c.ensureNamespace(t, c.sentinel.Namespace(""))
	c.create(t,
		c.sentinel.Identity(scenarios.Identity{Name: name, Azure: "s"}),
		c.sentinel.Binding(scenarios.Binding{Identity: name}),
		c.sentinel.Pod(scenarios.Pod{Name: name, Selector: name, Node: "s"}),
	)
	c.await(t, "the sentinel", func() string {
		for _, a := range c.assignments(t, c.sentinel.Prefix) {
			if a.Spec.Pod == name && a.Status.Status == v1.AssignedIDAssigned {
				return ""
			}
		}
		return "the pod " + name + " has not got its identity"
	})
}

func (c *cluster) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.kube.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *cluster) ensureNamespace(t *testing.T, name string) {
	t.Helper()
	err := c.kube.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

func (c *cluster) join(t *testing.T, nodes map[string]scenarios.Node) {
	t.Helper()
	for name, n := range nodes {
		c.create(t, c.Node(name, n))
	}
}

// put creates objects.
func (c *cluster) put(t *testing.T, o scenarios.Objects) {
	t.Helper()
	for _, i := range o.Identities {
		c.ensureNamespace(t, c.Namespace(i.Namespace))
		c.create(t, c.Identity(i))
	}
	for _, b := range o.Bindings {
		c.ensureNamespace(t, c.Namespace(b.Namespace))
		c.create(t, c.Binding(b))
	}
	for _, p := range o.Pods {
		pod := c.Pod(p)
		c.ensureNamespace(t, pod.Namespace)
		c.create(t, pod)
	}
}

// edit does one thing; the error is the API server's refusal.
func (c *cluster) edit(t *testing.T, e scenarios.Edit) error {
	t.Helper()
	if e.Fault != nil {
		_, err := c.sim.Faults.Add(fault.Fault{
			Match: fault.Match{Surface: journal.ARM, Method: e.Fault.Method, Path: c.ResourceID(e.Fault.Resource)}, Times: e.Fault.Times, Response: e.Fault.Response,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := inAzure(c.sim.State, c.Place, e); err != nil {
		t.Fatal(err)
	}
	if e.Create != nil {
		c.put(t, *e.Create)
	}
	c.join(t, e.Nodes)
	if err := c.replace(t, e.Replace); err != nil {
		return err
	}
	c.remove(t, e.Delete)
	if e.Restart {
		c.stop()
		install := c.Install
		if e.Install != nil {
			install = *e.Install
		}
		c.stop = c.run(t, install)
	}
	return nil
}

func (c *cluster) replace(t *testing.T, o *scenarios.Objects) error {
	t.Helper()
	if o == nil {
		return nil
	}
	for _, i := range o.Identities {
		is, want := &v1.AzureIdentity{}, c.Identity(i)
		c.get(t, want, is)
		is.Labels, is.Annotations, is.Spec = want.Labels, want.Annotations, want.Spec
		if err := c.kube.Update(t.Context(), is); err != nil {
			return err //nolint:wrapcheck // for the test, as it is
		}
	}
	for _, b := range o.Bindings {
		is, want := &v1.AzureIdentityBinding{}, c.Binding(b)
		c.get(t, want, is)
		is.Labels, is.Annotations, is.Spec = want.Labels, want.Annotations, want.Spec
		if err := c.kube.Update(t.Context(), is); err != nil {
			return err //nolint:wrapcheck // for the test, as it is
		}
	}
	for _, p := range o.Pods {
		c.replacePod(t, p)
	}
	return nil
}

func (c *cluster) get(t *testing.T, of, into client.Object) {
	t.Helper()
	if err := c.kube.Get(t.Context(), client.ObjectKeyFromObject(of), into); err != nil {
		t.Fatal(err)
	}
}

// replacePod does to a pod what the scheduler, the kubelet and its owner do.
func (c *cluster) replacePod(t *testing.T, p scenarios.Pod) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is, want, ctx := &corev1.Pod{}, c.Pod(p), t.Context()
	c.get(t, want, is)
	if is.Spec.NodeName != want.Spec.NodeName {
		check(c.kube.SubResource("binding").Create(ctx, is, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: want.Spec.NodeName}}))
		c.get(t, want, is)
	}
	if is.Labels[v1.PodLabel] != want.Labels[v1.PodLabel] || p.Terminating {
		is.Labels = want.Labels
		if p.Terminating {
			is.Finalizers = []string{hold}
		}
		check(c.kube.Update(ctx, is))
	}
	if is.Status.Phase != want.Status.Phase && want.Status.Phase != "" {
		is.Status.Phase = want.Status.Phase
		check(c.kube.Status().Update(ctx, is))
	}
	if p.Terminating {
		check(c.kube.Delete(ctx, is))
	}
}

func (c *cluster) remove(t *testing.T, n *scenarios.Names) {
	t.Helper()
	if n == nil {
		return
	}
	remove := func(object client.Object, key string, options ...client.DeleteOption) {
		t.Helper()
		namespace, name := c.Split(key)
		object.SetNamespace(namespace)
		object.SetName(name)
		if err := c.kube.Delete(t.Context(), object, options...); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range n.Identities {
		remove(&v1.AzureIdentity{}, key)
	}
	for _, key := range n.Bindings {
		remove(&v1.AzureIdentityBinding{}, key)
	}
	for _, key := range n.Pods {
		remove(&corev1.Pod{}, key, client.GracePeriodSeconds(0))
	}
	for _, name := range n.Nodes {
		if err := c.kube.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.NodeName(name)}}); err != nil {
			t.Fatal(err)
		}
	}
}

// assignments are those of pods of a place.
func (c *cluster) assignments(t *testing.T, prefix string) []*v1.AzureAssignedIdentity {
	t.Helper()
	var list v1.AzureAssignedIdentityList
	if err := c.seen.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var out []*v1.AzureAssignedIdentity
	for i, a := range list.Items {
		inside := strings.HasPrefix(a.Spec.PodNamespace, c.sentinel.Prefix)
		if strings.HasPrefix(a.Spec.PodNamespace, prefix) && inside == (prefix == c.sentinel.Prefix) {
			out = append(out, &list.Items[i])
		}
	}
	return out
}

func (c *cluster) outcome(t *testing.T) outcome {
	t.Helper()
	attached, null := attachedTo(c.sim.State, c.Place)
	c.mu.Lock()
	now := *c.counts(c.Prefix)
	c.mu.Unlock()
	o := outcome{
		assignments: c.assignments(t, c.Prefix), attached: attached, null: null, owned: map[string][]string{}, patches: map[string]int{},
		created: now.created - c.before.created, deleted: now.deleted - c.before.deleted, rewritten: now.rewritten - c.before.rewritten,
	}
	var records v1.AzureIdentityAttachmentList
	if err := c.seen.List(t.Context(), &records); err != nil {
		t.Fatal(err)
	}
	asked := c.sim.Journal.Since(c.since)
	for _, short := range resourcesOf(c.Place) {
		for _, record := range records.Items {
			if strings.EqualFold(record.Spec.ResourceID, c.ResourceID(short)) {
				o.owned[short] = ownedOf(c.Place, record.Spec.Owned)
			}
		}
		for _, e := range asked {
			if e.Surface == journal.ARM && e.Method == http.MethodPatch && strings.EqualFold(e.Path, c.ResourceID(short)) {
				o.patches[short]++
			}
		}
	}
	return o
}

// differs says what is not as a step expects, in the cluster's own words too.
func (c *cluster) differs(t *testing.T, e scenarios.Expect) string {
	t.Helper()
	o := c.outcome(t)
	var out strings.Builder
	out.WriteString(o.differs(c.Place, e))
	reasons := byPod(c.Place, o.assignments, func(a *v1.AzureAssignedIdentity) string { return reasonOf(a.Status.Conditions) })
	for pod, want := range e.Reasons {
		for identity, reason := range want {
			if got := reasons[c.Expand(pod)][identity]; got != reason {
				fmt.Fprintf(&out, "the assignment of %s to %s says %q, expected %q\n", identity, pod, got, reason)
			}
		}
	}
	for name, reason := range e.IdentityReasons {
		var object v1.AzureIdentity
		namespace, short := c.Split(name)
		if err := c.seen.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: short}, &object); err != nil {
			fmt.Fprintf(&out, "AzureIdentity %s: %v\n", name, err)
		} else if got := worstOf(object.Status.Conditions); got != reason {
			fmt.Fprintf(&out, "AzureIdentity %s says %q, expected %q\n", name, got, reason)
		}
	}
	for _, event := range e.Events {
		if !c.hasEvent(t, event) {
			fmt.Fprintf(&out, "there is no Event %s on %s that says %q\n", event.Reason, event.About, event.Says)
		}
	}
	return out.String()
}

func reasonOf(conditions []metav1.Condition) string {
	if c := meta.FindStatusCondition(conditions, v1.ConditionReady); c != nil {
		return c.Reason
	}
	return ""
}

// worstOf is the reason of a condition that is false, or else of Ready.
func worstOf(conditions []metav1.Condition) string {
	for _, c := range conditions {
		if c.Status == metav1.ConditionFalse {
			return c.Reason
		}
	}
	return reasonOf(conditions)
}

func (c *cluster) hasEvent(t *testing.T, want scenarios.Event) bool {
	t.Helper()
	var list corev1.EventList
	if err := c.seen.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	kind, key, _ := strings.Cut(want.About, " ")
	namespace, name := c.Split(key)
	return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
		return e.InvolvedObject.Kind == kind && e.InvolvedObject.Namespace == namespace && e.InvolvedObject.Name == name &&
			e.Reason == want.Reason && strings.Contains(e.Message, want.Says)
	})
}
