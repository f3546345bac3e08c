package attachment

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

func TestRest(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, test := range map[string]struct {
		pass     pass
		interval time.Duration
		chance   float64
		want     time.Duration
	}{
		"nothing to come back for":              {},
		"an operation runs":                     {pass: pass{wait: true}, want: lookAgain},
		"a refused identity":                    {pass: pass{again: now.Add(time.Minute)}, want: time.Minute},
		"one that is due":                       {pass: pass{again: now.Add(-time.Minute)}, want: cacheLag},
		"drift, early":                          {pass: pass{inUse: true}, interval: 100 * time.Second, want: 90 * time.Second},
		"drift, late":                           {pass: pass{inUse: true}, interval: 100 * time.Second, chance: 1, want: 110 * time.Second},
		"drift of a resource that nobody needs": {interval: 100 * time.Second},
		"the soonest":                           {pass: pass{inUse: true, again: now.Add(time.Second), wait: true}, interval: time.Minute, want: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			p := test.pass
			p.Reconciler = &Reconciler{options: Options{
				ReconcileInterval: test.interval, Now: func() time.Time { return now }, Random: func() float64 { return test.chance },
			}}
			if got := p.rest(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestViews(t *testing.T) {
	start := time.Unix(1000, 0)
	set, other := ref(t, setID), ref(t, setID+"-2")
	for name, test := range map[string]struct{ interval, age time.Duration }{
		"no drift repair":        {0, viewAge},
		"a slow one":             {3 * time.Minute, viewAge},
		"one faster than a view": {2 * time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			v := newViews(test.interval)
			v.set(set, view{seen: compute.Identities{ETag: "e"}, at: start})
			if got, ok := v.of(set, start.Add(test.age-1)); !ok || got.seen.ETag != "e" {
				t.Errorf("forgotten too early: %v, %v", got, ok)
			}
			if _, ok := v.of(other, start); ok {
				t.Error("another was seen")
			}
			if _, ok := v.of(set, start.Add(test.age)); ok {
				t.Error("remembered too long")
			}
			v.set(set, view{at: start})
			v.forget(set)
			if _, ok := v.of(set, start); ok {
				t.Error("not forgotten")
			}
		})
	}
}

// What is about to change, or in doubt, is not remembered.
func TestRemember(t *testing.T) {
	set, now := ref(t, setID), time.Unix(1000, 0)
	for name, test := range map[string]struct {
		change func(*pass)
		want   bool
	}{
		"as it should be":     {func(*pass) {}, true},
		"not seen":            {func(p *pass) { p.seen = nil }, false},
		"an operation runs":   {func(p *pass) { p.seen.Updating = true }, false},
		"of ours":             {func(p *pass) { p.wait = true }, false},
		"something is failed": {func(p *pass) { p.failure = errors.New("odd") }, false},
	} {
		r := &Reconciler{views: newViews(0), options: Options{Now: func() time.Time { return now }}}
		p := &pass{Reconciler: r, ref: set}
		p.show(compute.Identities{ETag: "e"})
		test.change(p)
		p.remember()
		again := &pass{Reconciler: r, ref: set}
		if again.recall(); again.remembered != test.want || (again.seen != nil) != test.want {
			t.Errorf("%s: remembered %v", name, again.remembered)
		}
	}
}

func TestScheduled(t *testing.T) {
	then := time.Unix(1000, 0)
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus) *corev1.Pod {
		return &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: kind, Status: status, LastTransitionTime: metav1.NewTime(then)}}}}
	}
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want time.Duration
	}{
		"bound a minute ago": {condition(corev1.PodScheduled, corev1.ConditionTrue), time.Minute},
		"not bound":          {condition(corev1.PodScheduled, corev1.ConditionFalse), 0},
		"another condition":  {condition(corev1.PodReady, corev1.ConditionTrue), 0},
		"none":               {&corev1.Pod{}, 0},
	} {
		if got := since(then.Add(time.Minute), scheduled(test.pod)); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
	if got := since(then, then.Add(time.Second)); got != 0 {
		t.Errorf("clocks that disagree: %s", got)
	}
}

// A node's resource is known after the node is gone, and not by the name of one
// that was never seen.
func TestPlaces(t *testing.T) {
	r := &Reconciler{places: newPlaces(), lookup: kube.Lookup{Reader: nodes{
		"now":   {Spec: corev1.NodeSpec{ProviderID: "azure://" + setID + "/virtualMachines/0"}},
		"plain": {Spec: corev1.NodeSpec{ProviderID: "kind://x"}},
	}}}
	r.places.note("before", ref(t, setID+"-2"))
	r.places.note("plain", ref(t, setID+"-2"))
	for name, want := range map[string]string{"now": setID, "before": setID + "-2", "plain": "", "never": ""} {
		got, ok := r.placeOf(t.Context(), name)
		if ok != (want != "") || ok && got != ref(t, want) {
			t.Errorf("%s: got %s %v, want %q", name, got, ok, want)
		}
	}
}

// nodes is a reader that knows nodes only.
type nodes map[string]*corev1.Node

func (n nodes) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	node, ok := n[key.Name]
	into, isNode := object.(*corev1.Node)
	if !ok || !isNode {
		return apierrors.NewNotFound(corev1.Resource("nodes"), key.Name)
	}
	*into = *node
	return nil
}

func (nodes) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("nobody lists")
}

func TestIsDeleting(t *testing.T) {
	if !isDeleting(&armclient.NotStartedError{Err: &armclient.DeletingError{}}) || isDeleting(errors.New("odd")) || isDeleting(nil) {
		t.Error("the failure is mistaken")
	}
}

// Nobody begins before the old controller's work is recorded, and leadership
// that is lost meanwhile ends the wait.
func TestWaitAdopted(t *testing.T) {
	r := &Reconciler{adopted: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.WaitAdopted(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(r.adopted)
	if err := r.WaitAdopted(t.Context()); err != nil {
		t.Errorf("got %v", err)
	}
}

// TestUnplacedNode: the controller of nodes without a resource is told of the
// assignments on those only.
func TestUnplacedNode(t *testing.T) {
	c := newCalm(t)
	must(t, c.cache.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}, Spec: corev1.NodeSpec{ProviderID: "gce://x"}}))
	for node, want := range map[string]int{"node": 0, "": 0, "elsewhere": 1, "missing": 1} {
		a := pod("a")
		a.Spec.NodeName = node
		if got := c.unplacedNode(t.Context(), a); len(got) != want || want > 0 && got[0].Name != node {
			t.Errorf("%q: %v", node, got)
		}
	}
}
