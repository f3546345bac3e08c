package assignment_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// cluster is a small cluster whose names meet often: pods whose names join to
// one text, namesakes over namespaces, two identities for one managed identity.
type cluster struct {
	random     *rand.Rand
	namespaced bool
	pods       map[identity.Key]string // to the node; empty: it is not bound yet
	identities map[identity.Key]*v1.AzureIdentity
	bindings   map[identity.Key]*v1.AzureIdentityBinding
	assigned   map[identity.Key]*v1.AzureAssignedIdentity
	made       int
}

func newCluster(seed uint64) *cluster {
	return &cluster{
		random: rand.New(rand.NewPCG(seed, 1)), pods: map[identity.Key]string{}, identities: map[identity.Key]*v1.AzureIdentity{},
		bindings: map[identity.Key]*v1.AzureIdentityBinding{}, assigned: map[identity.Key]*v1.AzureAssignedIdentity{},
	}
}

func (c *cluster) pick(from ...string) string { return from[c.random.IntN(len(from))] }

func (c *cluster) key(names ...string) identity.Key {
	return identity.Key{Namespace: c.pick("a", "b-c", "c"), Name: c.pick(names...)}
}

// Bindings and Identity make it a [binding.Catalog].
func (c *cluster) Bindings(string) []*v1.AzureIdentityBinding {
	return slices.Collect(maps.Values(c.bindings))
}
func (c *cluster) Identity(key identity.Key) *v1.AzureIdentity { return c.identities[key] }

// step changes one thing, as users and controllers do.
func (c *cluster) step() string {
	pod, id := c.key("web-0", "a", "a-b"), c.key("i", "j")
	switch what := c.pick("pod", "pod", "gone", "identity", "case", "namespaced", "unidentity", "binding", "unbinding", "mode", "assigned", "old", "meddle"); what {
	case "pod":
		c.pods[pod] = c.pick("", "n0", "n1")
	case "gone":
		delete(c.pods, pod)
	case "identity":
		c.identities[id] = &v1.AzureIdentity{
			ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name},
			Spec:       v1.AzureIdentitySpec{ResourceID: strings.Replace(resourceID, "Demo", c.pick("x", "y"), 1), ClientID: c.pick("c", "d")},
		}
	case "case":
		if object := c.identities[id]; object != nil {
			object.Spec.ResourceID, object.Spec.ClientID = strings.ToUpper(object.Spec.ResourceID), strings.ToUpper(object.Spec.ClientID)
			object.ResourceVersion += "1"
		}
	case "namespaced":
		if object := c.identities[id]; object != nil {
			object.Annotations = map[string]string{v1.BehaviorAnnotation: c.pick(v1.BehaviorNamespaced, "")}
		}
	case "unidentity":
		delete(c.identities, id)
	case "binding":
		c.bindings[id] = &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: c.pick("i", "j"), Selector: "s"}}
	case "unbinding":
		delete(c.bindings, id)
	case "mode":
		c.namespaced = !c.namespaced
	default:
		return what + c.meddle(what)
	}
	return fmt.Sprint(pod, id)
}

// meddle changes one assignment, as the attachment, the old controller or a
// person does.
func (c *cluster) meddle(what string) string {
	keys := slices.SortedFunc(maps.Keys(c.assigned), identity.Key.Compare)
	if len(keys) == 0 {
		return ""
	}
	object := c.assigned[keys[c.random.IntN(len(keys))]]
	switch what {
	case "assigned":
		object.Status.Status = v1.AssignedIDAssigned
	case "old":
		object.Status.Status = c.pick("", "Created", "Assigned", "Unassigned")
		object.Finalizers = []string{v1.AssignedIdentityFinalizer}
	case "meddle":
		object.Spec.NodeName = "n9"
	}
	return object.Name
}

func (c *cluster) snapshot(pod identity.Key) assignment.Snapshot {
	s := assignment.Snapshot{Pod: pod, Namespaced: c.namespaced, Now: now, Taken: func(namespace, name string) bool {
		object := c.assigned[identity.Key{Namespace: namespace, Name: name}]
		return object != nil && kube.PodOf(object) != pod
	}}
	node, exists := c.pods[pod]
	if exists {
		s.Node = node
		s.Grants = c.decide(pod).Grants
	}
	for _, object := range c.assigned {
		if kube.PodOf(object) == pod {
			s.Current = append(s.Current, object)
		}
	}
	return s
}

func (c *cluster) decide(pod identity.Key) binding.Decision {
	return binding.Decide(binding.Pod{Namespace: pod.Namespace, Name: pod.Name, Labels: map[string]string{v1.PodLabel: "s"}}, c, binding.Policy{Namespaced: c.namespaced})
}

// apply carries changes out as the API server would, and holds what must be true
// of every one.
func (c *cluster) apply(t *testing.T, pod identity.Key, changes assignment.Changes) {
	t.Helper()
	for _, object := range changes.Create {
		key := identity.Key{Namespace: object.Namespace, Name: object.Name}
		if c.assigned[key] != nil {
			t.Errorf("%s is there already", key)
		}
		c.made++
		object.UID = types.UID(fmt.Sprint(c.made))
		c.assigned[key] = object
		c.own(t, pod, object)
	}
	for _, update := range changes.Update {
		c.assigned[identity.Key{Namespace: update.To.Namespace, Name: update.To.Name}] = update.To
		c.own(t, pod, update.From)
		c.own(t, pod, update.To)
	}
	for _, object := range changes.Delete {
		delete(c.assigned, identity.Key{Namespace: object.Namespace, Name: object.Name})
		c.own(t, pod, object)
	}
}

func (c *cluster) own(t *testing.T, pod identity.Key, object *v1.AzureAssignedIdentity) {
	t.Helper()
	if kube.PodOf(object) != pod {
		t.Errorf("for pod %s the assignment %s of %s was written", pod, object.Name, kube.PodOf(object))
	}
}

// settle reconciles every pod until nothing changes, with the attachment saying
// Assigned in between.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	for range 5 {
		quiet := true
		for _, pod := range c.everyPod() {
			before := c.serving(pod)
			changes := assignment.Compute(c.snapshot(pod))
			quiet = quiet && changes.Empty()
			c.apply(t, pod, changes)
			c.stillServed(t, pod, before)
			if again := assignment.Compute(c.snapshot(pod)); !again.Empty() {
				t.Errorf("pod %s: the changes are not enough: %+v", pod, again)
			}
		}
		for _, object := range c.assigned {
			if object.Status.Status == v1.AssignedIDCreated {
				object.Status.Status = v1.AssignedIDAssigned
			}
		}
		if quiet {
			return
		}
	}
	t.Error("it never comes to rest")
}

func (c *cluster) everyPod() []identity.Key {
	pods := map[identity.Key]bool{}
	for pod := range c.pods {
		pods[pod] = true
	}
	for _, object := range c.assigned {
		pods[kube.PodOf(object)] = true
	}
	return slices.SortedFunc(maps.Keys(pods), identity.Key.Compare)
}

// principal is what a token is for, and the node where it is got.
type principal struct {
	identity           identity.Key
	resource, id, node string
}

// serving is what the pod's assignments give tokens for.
func (c *cluster) serving(pod identity.Key) map[principal]bool {
	out := map[principal]bool{}
	for _, object := range c.assigned {
		if status := object.Status.Status; kube.PodOf(object) == pod && (status == v1.AssignedIDAssigned || status == "") {
			ref := object.Spec.AzureIdentityRef
			out[principal{identity.Key{Namespace: ref.Namespace, Name: ref.Name}, strings.ToLower(ref.Spec.ResourceID), strings.ToLower(ref.Spec.ClientID), object.Spec.NodeName}] = true
		}
	}
	return out
}

// stillServed: a pod that had a token for what it may still use has one yet.
func (c *cluster) stillServed(t *testing.T, pod identity.Key, before map[principal]bool) {
	t.Helper()
	after, node := c.serving(pod), c.pods[pod]
	for _, grant := range c.decide(pod).Grants {
		spec := grant.Object.Spec
		p := principal{grant.Identity.Key, strings.ToLower(spec.ResourceID), strings.ToLower(spec.ClientID), node}
		if _, exists := c.pods[pod]; exists && node != "" && before[p] && !after[p] {
			t.Errorf("pod %s lost its token for %v", pod, p)
		}
	}
}

// check holds what must be true at rest: every pod has one assignment for each
// grant, where it belongs, and nothing else is left.
func (c *cluster) check(t *testing.T) {
	t.Helper()
	left := maps.Clone(c.assigned)
	for pod, node := range c.pods {
		if node == "" {
			continue
		}
		for _, grant := range c.decide(pod).Grants {
			found := 0
			for key, object := range c.assigned {
				ref := object.Spec.AzureIdentityRef
				if kube.PodOf(object) != pod || ref.Name != grant.Identity.Name {
					continue
				}
				found++
				delete(left, key)
				where := "default"
				if c.namespaced || grant.Identity.Namespaced {
					where = grant.Identity.Namespace
				}
				if object.Namespace != where || object.Spec.NodeName != node || ref.Namespace != grant.Identity.Namespace ||
					!strings.EqualFold(ref.Spec.ResourceID, grant.Object.Spec.ResourceID) || !strings.EqualFold(ref.Spec.ClientID, grant.Object.Spec.ClientID) || len(object.Finalizers) > 0 || object.Status.Status == v1.AssignedIDUnassigned {
					t.Errorf("pod %s may use %s on %s, and has %+v", pod, grant.Identity.Key, node, object)
				}
			}
			if found != 1 {
				t.Errorf("pod %s has %d assignments of %s, want one", pod, found, grant.Identity.Key)
			}
		}
	}
	for key := range left {
		t.Errorf("%s is left over", key)
	}
}

// TestComputeProperties: whatever happens, every pod comes to have exactly what
// it may use, by writes to its own assignments alone, without a moment's loss of
// a token for what it may still use.
func TestComputeProperties(t *testing.T) {
	for seed := range uint64(100) {
		c := newCluster(seed)
		var history []string
		for range 40 {
			for range 1 + c.random.IntN(3) {
				history = append(history, c.step())
			}
			c.settle(t)
			c.check(t)
			if t.Failed() {
				t.Fatalf("seed %d: %v", seed, history)
			}
		}
	}
}

// TestCaseAndMetadataRewriteNothing: at rest, another case of the IDs and other
// metadata of identities change no assignment.
func TestCaseAndMetadataRewriteNothing(t *testing.T) {
	for seed := range uint64(100) {
		c := newCluster(seed)
		for range 30 {
			c.step()
		}
		c.settle(t)
		for _, object := range c.identities {
			object.Spec.ResourceID, object.Spec.ClientID = strings.ToLower(object.Spec.ResourceID)+"/", strings.ToUpper(object.Spec.ClientID)
			object.ResourceVersion, object.Labels = "999", map[string]string{"team": "blue"}
		}
		for _, pod := range c.everyPod() {
			if changes := assignment.Compute(c.snapshot(pod)); !changes.Empty() {
				t.Fatalf("seed %d: pod %s: %s", seed, pod, cmp.Diff(assignment.Changes{}, changes))
			}
		}
	}
}
