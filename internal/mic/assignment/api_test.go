package assignment_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// TestController plays scenes against one API server, one after the other, each
// with a controller of its own.
func TestController(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name string
		play func(*testing.T, *world)
	}{
		{"pods-lag", podCacheLags},
		{"departs", podDeparts},
		{"own-writes", ownWritesUnseen},
		{"metadata", metadataWritesNothing},
		{"strangers", strangersDataStays},
		{"again", podMadeAgain},
		{"flip", flips},
		{"held", heldByTheOldFinalizer},
		{"conflict", nameConflicts},
		{"churn", churn},
		{"terminating-namespace", namespaceTerminates},
	} {
		t.Run(test.name, func(t *testing.T) { test.play(t, w) })
	}
}

const (
	assignedKind = "azureassignedidentities"
	podKind      = "pods"
)

// podCacheLags: another leader made the assignment of a pod that this one's cache
// does not show yet. It is not taken away.
func podCacheLags(t *testing.T, w *world) {
	w.namespace(t, "lag", "demo")
	sent, _ := w.run(t, false)
	release := sent.hold(podKind)
	pod := w.pod(t, "lag", "web", "n0")
	w.create(t, &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-lag-demo", Labels: map[string]string{"nodename": "n0"}},
		Spec: v1.AzureAssignedIdentitySpec{
			AzureIdentityRef: copyOf(t, w, "lag", "demo"),
			AzureBindingRef: &v1.AzureIdentityBinding{
				TypeMeta:   metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentityBinding"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "lag", Name: "demo"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "lag"},
			},
			Pod: "web", PodNamespace: "lag", NodeName: "n0",
		},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDAssigned},
	})
	sent.await(t, "a second look for the pod", func() bool { return sent.lists["pods?metadata.name=web"] >= 2 })
	release()
	w.marker(t, "lag")
	if got := sent.sent(assignedKind); len(got) != 1 { // the marker's
		t.Errorf("it wrote %v", got)
	}
	// A pod without the label any more is one that is gone, also when its event is late.
	edit(t, w, pod, func(p *corev1.Pod) { delete(p.Labels, v1.PodLabel) })
	w.assignments(t, "lag", "none", count(0))
}

// podDeparts: whether a pod that ends has a successor of its name is asked where it
// can have one.
func podDeparts(t *testing.T, w *world) {
	w.namespace(t, "departs", "demo")
	sent, _ := w.run(t, false)
	lasting := w.pod(t, "departs", "web-0", "n0")
	once := lasting.DeepCopy()
	once.ObjectMeta = metav1.ObjectMeta{Namespace: "departs", GenerateName: "web-", Name: "web-x2x4v", Labels: lasting.Labels}
	w.create(t, once)
	w.assignments(t, "departs", "both", count(2))
	w.kill(t, lasting)
	w.kill(t, once)
	w.assignments(t, "departs", "none", count(0))
	sent.mu.Lock()
	defer sent.mu.Unlock()
	if got := sent.lists["pods?metadata.name=web-0"]; got == 0 {
		t.Error("nobody looked for a successor of the one that may have one")
	}
	if got := sent.lists["pods?metadata.name=web-x2x4v"]; got > 0 {
		t.Errorf("somebody looked %d times for a successor of the one whose name is random", got)
	}
}

func copyOf(t *testing.T, w *world, namespace, name string) *v1.AzureIdentity {
	t.Helper()
	object := &v1.AzureIdentity{}
	if err := w.kube.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		t.Fatal(err)
	}
	object.TypeMeta = metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentity"}
	return object
}

// ownWritesUnseen: while the cache does not show what the controller wrote, it
// writes nothing twice.
func ownWritesUnseen(t *testing.T, w *world) {
	w.namespace(t, "unseen", "demo")
	sent, _ := w.run(t, false)
	release := sent.hold(assignedKind)
	pod := w.pod(t, "unseen", "web", "n0")
	sent.await(t, "the creation", func() bool { return len(sent.writes) == 1 && sent.writes[0].status != 0 })
	for i := range 5 { // events of the pod and of its binding
		phase := []corev1.PodPhase{corev1.PodPending, corev1.PodRunning}[i%2]
		before := pod.DeepCopy()
		pod.Status.Phase = phase
		if err := w.kube.Status().Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		edit(t, w, &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "unseen", Name: "demo"}}, func(b *v1.AzureIdentityBinding) { b.Spec.Weight = i + 1 })
	}
	release()
	w.assignments(t, "unseen", "the binding as it is now", func(all []v1.AzureAssignedIdentity) bool {
		return len(all) == 1 && all[0].Spec.AzureBindingRef.Spec.Weight == 5
	})
	w.marker(t, "unseen")
	if got := sent.sent("POST", "/default/"+assignedKind); len(got) != 2 { // with the marker's
		t.Errorf("it created %v", got)
	}
	release = sent.hold(assignedKind)
	w.kill(t, pod)
	sent.await(t, "the deletion", func() bool { return strings.HasPrefix(sent.writes[len(sent.writes)-1].String(), "DELETE 200") })
	edit(t, w, &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "unseen", Name: "demo"}}, func(b *v1.AzureIdentityBinding) { b.Spec.Weight = 9 })
	release()
	w.assignments(t, "unseen", "none", count(0))
	w.marker(t, "unseen")
	if got := sent.sent("DELETE", "web-unseen-demo"); len(got) != 1 {
		t.Errorf("it deleted %v", got)
	}
	if got := sent.sent(" 409 "); len(got) != 0 {
		t.Errorf("it ran into %v", got)
	}
}

// metadataWritesNothing: of 40 pods with two identities each, none is written for
// edits that change nothing for them.
func metadataWritesNothing(t *testing.T, w *world) {
	w.namespace(t, "meta", "one", "two")
	sent, stop := w.run(t, false)
	for i := range 40 {
		w.pod(t, "meta", fmt.Sprintf("web-%d", i), "n0")
	}
	w.assignments(t, "meta", "all", count(80))
	w.attached(t, "meta")
	w.marker(t, "meta")
	before := len(sent.sent(assignedKind))
	for i, name := range []string{"one", "two"} {
		edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "meta", Name: name}}, func(o *v1.AzureIdentity) {
			o.Labels, o.Annotations = map[string]string{"team": "blue"}, map[string]string{"note": strings.Repeat("x", 100)}
			o.Spec.ResourceID, o.Spec.ClientID = strings.ToUpper(resourceID), "abc"
			o.Spec.Metadata = &metav1.ObjectMeta{}
		})
		edit(t, w, &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "meta", Name: name}}, func(o *v1.AzureIdentityBinding) {
			o.Labels, o.Finalizers = map[string]string{"team": "blue"}, []string{}
		})
		edit(t, w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "meta", Name: fmt.Sprintf("web-%d", i)}}, func(o *corev1.Pod) { o.Annotations = map[string]string{"note": "x"} })
	}
	w.marker(t, "meta")
	if got := sent.sent(assignedKind); len(got) != before+1 { // the marker's
		t.Errorf("it wrote %v", got[before:])
	}
	stop()
	again, _ := w.run(t, false) // a restart looks at every pod
	w.marker(t, "meta")
	if got := again.sent(assignedKind); len(got) != 1 {
		t.Errorf("after a restart it wrote %v", got)
	}
}

// strangersDataStays: what others put on an assignment outlives the controller's
// writes to it.
func strangersDataStays(t *testing.T, w *world) {
	w.namespace(t, "stranger", "demo")
	w.run(t, false)
	pod := w.pod(t, "stranger", "web", "n0")
	edit(t, w, w.only(t, "stranger"), func(a *v1.AzureAssignedIdentity) {
		a.Annotations, a.Labels["mine"] = map[string]string{"backup": "no"}, "yes"
		a.Finalizers = []string{"example.com/mine", v1.AssignedIdentityFinalizer}
		a.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}
		a.Spec.AzureIdentityRef.Labels = map[string]string{"team": "blue"}
		a.Status.Status = v1.AssignedIDAssigned
	})
	edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "stranger", Name: "demo"}}, func(o *v1.AzureIdentity) { o.Spec.ClientID = "DEF" })
	a := w.assignments(t, "stranger", "the other client ID, without the old finalizer", func(all []v1.AzureAssignedIdentity) bool {
		return len(all) == 1 && all[0].Spec.AzureIdentityRef.Spec.ClientID == "DEF" && !slices.Contains(all[0].Finalizers, v1.AssignedIdentityFinalizer)
	})[0]
	if a.Annotations["backup"] != "no" || a.Labels["mine"] != "yes" || a.Labels["nodename"] != "n0" || !slices.Equal(a.Finalizers, []string{"example.com/mine"}) || len(a.OwnerReferences) != 1 {
		t.Errorf("got %+v", a.ObjectMeta)
	}
	if a.Status.Status != v1.AssignedIDCreated || a.Spec.AzureIdentityRef.Kind != "AzureIdentity" || a.Spec.AzureBindingRef.Spec.Selector != "stranger" {
		t.Errorf("got %+v", a)
	}
	edit(t, w, &a, func(a *v1.AzureAssignedIdentity) { a.Finalizers = nil })
	w.kill(t, pod)
	w.assignments(t, "stranger", "none", count(0))
}

// podMadeAgain: a pod is killed and made again under its name at once, on the
// same node and on another.
func podMadeAgain(t *testing.T, w *world) {
	w.namespace(t, "again", "demo")
	w.run(t, false)
	pod := w.pod(t, "again", "db-0", "n0")
	w.only(t, "again")
	w.attached(t, "again")
	for _, node := range []string{"n0", "n1", "n1", "n0"} {
		w.kill(t, pod)
		pod = w.pod(t, "again", "db-0", node)
		w.marker(t, "again")
		a := w.assignments(t, "again", "the assignment on "+node, func(all []v1.AzureAssignedIdentity) bool {
			return len(all) == 1 && all[0].Spec.NodeName == node && all[0].Labels["nodename"] == node
		})[0]
		if a.Name != "db-0-again-demo" || a.DeletionTimestamp != nil {
			t.Errorf("got %+v", a.ObjectMeta)
		}
	}
}

// flips: the identity's annotation and the install's switch move the assignment
// to the other namespace and back, and at no moment is there none that serves.
func flips(t *testing.T, w *world) {
	w.namespace(t, "flip", "demo")
	_, stop := w.run(t, false)
	w.pod(t, "flip", "web", "n0")
	w.only(t, "flip")
	w.attached(t, "flip")
	gap := w.watchForGap(t, "flip")
	in := func(namespace string) {
		t.Helper()
		w.assignments(t, "flip", "two", count(2))
		w.attached(t, "flip")
		w.assignments(t, "flip", "one in "+namespace, func(all []v1.AzureAssignedIdentity) bool {
			return len(all) == 1 && all[0].Namespace == namespace && all[0].Status.Status == v1.AssignedIDAssigned
		})
	}
	mark := func(value string) {
		edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "flip", Name: "demo"}}, func(o *v1.AzureIdentity) {
			o.Annotations = map[string]string{v1.BehaviorAnnotation: value}
		})
	}
	mark(v1.BehaviorNamespaced)
	in("flip")
	mark("")
	in("default")
	stop()
	_, stop = w.run(t, true)
	in("flip")
	stop()
	w.run(t, false)
	in("default")
	gap()
}

// watchForGap watches the assignments of a namespace's pods until the function
// that it returns is called, which fails the test if there was a moment without
// one that serves.
func (w *world) watchForGap(t *testing.T, namespace string) (check func()) {
	t.Helper()
	watcher, err := w.kube.Watch(t.Context(), &v1.AzureAssignedIdentityList{})
	if err != nil {
		t.Fatal(err)
	}
	gaps := make(chan string, 1)
	go func() {
		defer close(gaps)
		serving := map[string]bool{}
		for event := range watcher.ResultChan() {
			a, ok := event.Object.(*v1.AzureAssignedIdentity)
			if !ok || a.Spec.PodNamespace != namespace {
				continue
			}
			before := len(serving)
			delete(serving, a.Namespace+"/"+a.Name)
			if event.Type != "DELETED" && a.DeletionTimestamp == nil && a.Status.Status == v1.AssignedIDAssigned {
				serving[a.Namespace+"/"+a.Name] = true
			}
			if before > 0 && len(serving) == 0 {
				gaps <- fmt.Sprintf("%s %s/%s %s", event.Type, a.Namespace, a.Name, a.Status.Status)
				return
			}
		}
	}()
	return func() {
		t.Helper()
		watcher.Stop()
		for gap := range gaps {
			t.Errorf("none serves any more after %s", gap)
		}
	}
}

// heldByTheOldFinalizer: somebody deletes an assignment that carries the old
// controller's finalizer. It goes, and is made again while the pod lives.
func heldByTheOldFinalizer(t *testing.T, w *world) {
	w.namespace(t, "held", "demo")
	_, stop := w.run(t, false)
	pod := w.pod(t, "held", "web", "n0")
	a := w.only(t, "held")
	stop()
	edit(t, w, a, func(a *v1.AzureAssignedIdentity) { a.Finalizers = []string{v1.AssignedIdentityFinalizer} })
	w.delete(t, a)
	_, stop = w.run(t, false)
	w.assignments(t, "held", "a new one", func(all []v1.AzureAssignedIdentity) bool {
		return len(all) == 1 && all[0].UID != a.UID && len(all[0].Finalizers) == 0
	})
	stop()
	edit(t, w, w.only(t, "held"), func(a *v1.AzureAssignedIdentity) { a.Finalizers = []string{v1.AssignedIdentityFinalizer} })
	w.kill(t, pod)
	w.run(t, false)
	w.assignments(t, "held", "none", count(0))
}

// nameConflicts: who gets the one assignment of a name, and who is told.
func nameConflicts(t *testing.T, w *world) {
	for _, namespace := range []string{"conflict-a", "conflict-b", "conflict-c"} {
		w.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	}
	w.identity(t, "conflict-c", "demo", "conflict-b")
	w.identity(t, "conflict-b", "demo", "conflict-b")
	w.run(t, false)
	w.pod(t, "conflict-b", "web", "n0") // its own namespace's goes before c's
	foreign := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "conflict-a", Name: "web", Labels: map[string]string{v1.PodLabel: "conflict-b"}},
		Spec:       corev1.PodSpec{NodeName: "n0", Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	w.create(t, foreign)
	for _, namespace := range []string{"conflict-a", "conflict-b"} {
		if a := w.only(t, namespace); a.Spec.AzureIdentityRef.Namespace != "conflict-b" {
			t.Errorf("the pod of %s got %s", namespace, a.Spec.AzureIdentityRef.Namespace)
		}
	}
	w.told(t, "AzureIdentityBinding", "conflict-c", "demo", "pods of other namespaces")
	w.told(t, "Pod", "conflict-a", "web", "conflict-b/demo goes before conflict-c/demo")
	var all corev1.EventList
	if err := w.kube.List(t.Context(), &all, client.InNamespace("conflict-b")); err != nil {
		t.Fatal(err)
	}
	for _, e := range all.Items {
		if e.InvolvedObject.Kind == "Pod" {
			t.Errorf("the pod that has its own namespace's is told %s", e.Message)
		}
	}
}

func (w *world) told(t *testing.T, kind, namespace, name, words string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	err := objects.AwaitList(ctx, w.kube, &corev1.EventList{}, func(l *corev1.EventList) bool {
		return slices.ContainsFunc(l.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == string(v1.ReasonNameConflict) && strings.Contains(e.Message, words)
		})
	}, client.InNamespace(namespace))
	if err != nil {
		t.Errorf("waiting for an event on %s %s/%s: %v", kind, namespace, name, err)
	}
}

// churn: pods come and go, and the controller never runs into itself.
func churn(t *testing.T, w *world) {
	w.namespace(t, "churn", "one", "two")
	sent, _ := w.run(t, false)
	var pods []*corev1.Pod
	for i := range 60 {
		pods = append(pods, w.pod(t, "churn", fmt.Sprintf("job-%d", i), "n0"))
		if i >= 20 {
			w.kill(t, pods[i-20])
		}
	}
	w.assignments(t, "churn", "those of the last 20", count(40))
	w.marker(t, "churn")
	if got := sent.sent(" 409 "); len(got) != 0 {
		t.Errorf("it ran into %v", got)
	}
	if got := len(sent.sent("POST", assignedKind)); got > 2*60+1 {
		t.Errorf("it created %d for 60 pods", got)
	}
}

// namespaceTerminates: nothing can be made in a namespace that goes, and nobody
// needs to be told.
func namespaceTerminates(t *testing.T, w *world) {
	w.namespace(t, "leaving", "demo")
	edit(t, w, &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "leaving", Name: "demo"}}, func(o *v1.AzureIdentity) {
		o.Annotations = map[string]string{v1.BehaviorAnnotation: v1.BehaviorNamespaced}
	})
	w.pod(t, "leaving", "web", "n0")
	w.delete(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "leaving"}})
	sent, _ := w.run(t, false)
	sent.await(t, "the attempt", func() bool { return len(sent.writes) > 0 && sent.writes[0].status != 0 })
	w.marker(t, "leaving")
	if got := sent.sent("/leaving/"); len(got) != 1 || !strings.Contains(got[0], " 403 ") {
		t.Errorf("it tried %v", got)
	}
}
