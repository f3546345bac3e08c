package assignment_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
)

const resourceID = "/subscriptions/S/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"

var now = time.Unix(1_700_000_000, 0)

var pod = identity.Key{Namespace: "apps", Name: "web-0"}

// grant is one identity that the pod may use, changed by edit.
func grant(t *testing.T, edit func(*v1.AzureIdentity)) binding.Grant {
	t.Helper()
	object := &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ids", Name: "demo", UID: "u1", ResourceVersion: "7",
			Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		},
		Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "ABC"},
	}
	if edit != nil {
		edit(object)
	}
	principal, err := identity.FromObject(object)
	if err != nil {
		t.Fatal(err)
	}
	return binding.Grant{Identity: principal, Object: object, Binding: &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ids", Name: "demo-binding", UID: "u2"},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: object.Name, Selector: "demo"},
	}}
}

func snapshot(grants ...binding.Grant) assignment.Snapshot {
	return assignment.Snapshot{Pod: pod, Node: "node-0", Grants: grants, Taken: func(string, string) bool { return false }, Now: now}
}

// made is the assignment that a grant leads to, with the state it has later.
func made(t *testing.T, g binding.Grant, status string) *v1.AzureAssignedIdentity {
	t.Helper()
	changes := assignment.Compute(snapshot(g))
	if len(changes.Create) != 1 {
		t.Fatalf("got %+v, want one to create", changes)
	}
	changes.Create[0].Status.Status = status
	return changes.Create[0]
}

func TestComputeCreates(t *testing.T) {
	got := assignment.Compute(snapshot(grant(t, nil)))
	want := assignment.Changes{Create: []*v1.AzureAssignedIdentity{{
		TypeMeta:   metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureAssignedIdentity"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-0-apps-demo", Labels: map[string]string{"nodename": "node-0"}},
		Spec: v1.AzureAssignedIdentitySpec{
			AzureIdentityRef: &v1.AzureIdentity{
				TypeMeta:   metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentity"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "ids", Name: "demo", UID: "u1", ResourceVersion: "7"},
				Spec:       v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: "ABC"},
			},
			AzureBindingRef: &v1.AzureIdentityBinding{
				TypeMeta:   metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: "AzureIdentityBinding"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "ids", Name: "demo-binding", UID: "u2"},
				Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: "demo", Selector: "demo"},
			},
			Pod: "web-0", PodNamespace: "apps", NodeName: "node-0",
		},
		Status: v1.AzureAssignedIdentityStatus{Status: "Created", AvailableReplicas: 1, Conditions: []metav1.Condition{{
			Type: "Ready", Status: "False", Reason: "Attaching", LastTransitionTime: metav1.NewTime(now),
			Message: "waiting for Azure to attach the identity to the node's virtual machine or scale set",
		}}},
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestComputeNames(t *testing.T) {
	long := strings.Repeat("x", 200)
	for name, test := range map[string]struct {
		edit func(*assignment.Snapshot)
		want func(*v1.AzureAssignedIdentity) bool
	}{
		"a name that another pod has gets a suffix": {
			func(s *assignment.Snapshot) {
				s.Taken = func(ns, name string) bool { return ns == "default" && name == "web-0-apps-demo" }
			},
			func(a *v1.AzureAssignedIdentity) bool { return strings.HasPrefix(a.Name, "web-0-apps-demo-") },
		},
		"a name that is too long is cut and gets a suffix": {
			func(s *assignment.Snapshot) { s.Pod.Name = long; s.Pod.Namespace = long[:60] },
			func(a *v1.AzureAssignedIdentity) bool { return len(a.Name) == 253 },
		},
		"a node's name that fits into no label is left out there": {
			func(s *assignment.Snapshot) { s.Node = long },
			func(a *v1.AzureAssignedIdentity) bool { return len(a.Labels) == 0 && a.Spec.NodeName == long },
		},
		"a namespaced install puts it beside the identity": {
			func(s *assignment.Snapshot) { s.Namespaced = true },
			func(a *v1.AzureAssignedIdentity) bool { return a.Namespace == "ids" },
		},
		"a service principal needs nothing of Azure": {
			func(s *assignment.Snapshot) {
				s.Grants = []binding.Grant{grant(t, func(i *v1.AzureIdentity) {
					i.Spec = v1.AzureIdentitySpec{Type: 1, ClientID: "c", TenantID: "t", ClientPassword: &v1.SecretReference{Name: "n", Namespace: "s"}}
				})}
			},
			func(a *v1.AzureAssignedIdentity) bool { return a.Status.Status == "Assigned" },
		},
		"old spellings are written in today's": {
			func(s *assignment.Snapshot) {
				s.Grants = []binding.Grant{grant(t, func(i *v1.AzureIdentity) {
					i.Spec = v1.AzureIdentitySpec{LegacyResourceID: resourceID, LegacyClientID: "ABC"}
				})}
			},
			func(a *v1.AzureAssignedIdentity) bool {
				spec := a.Spec.AzureIdentityRef.Spec
				return spec.ResourceID == resourceID && spec.ClientID == "ABC" && spec.LegacyClientID == ""
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(grant(t, nil))
			test.edit(&s)
			changes := assignment.Compute(s)
			if len(changes.Create) != 1 || !test.want(changes.Create[0]) {
				t.Fatalf("got %+v", changes.Create)
			}
			if errs := validation.IsDNS1123Subdomain(changes.Create[0].Name); errs != nil {
				t.Errorf("name %s: %v", changes.Create[0].Name, errs)
			}
		})
	}
}

// TestHashedNamesDiffer: two pods whose names join to one text.
func TestHashedNamesDiffer(t *testing.T) {
	names := map[string]bool{}
	for _, key := range []identity.Key{{Namespace: "c", Name: "a-b"}, {Namespace: "b-c", Name: "a"}} {
		s := snapshot(grant(t, nil))
		s.Pod, s.Taken = key, func(string, string) bool { return true }
		names[assignment.Compute(s).Create[0].Name] = true
	}
	if len(names) != 2 {
		t.Errorf("got one name for two pods: %v", names)
	}
}

// TestNamesOfAssignments: those of AAD Pod Identity could mean two pods, be too
// long for Kubernetes, and name a node in a label that cannot hold it.
func TestNamesOfAssignments(t *testing.T) {
	long := strings.Repeat("x", 250)
	t.Run("21 assignments of different pods and identities have different names", func(t *testing.T) {
		taken := map[string]identity.Key{}
		for _, key := range []identity.Key{{Namespace: "c", Name: "a-b"}, {Namespace: "b-c", Name: "a"}, {Namespace: "b-c", Name: long}, {Namespace: "c", Name: long}} {
			for _, node := range []string{"node-0", long} {
				s := snapshot(grant(t, nil))
				s.Pod, s.Node = key, node
				s.Taken = func(_, name string) bool { other, ok := taken[name]; return ok && other != key }
				created := assignment.Compute(s).Create[0]
				if other, ok := taken[created.Name]; ok && other != key {
					t.Errorf("%s is the name for %s and for %s", created.Name, other, key)
				}
				taken[created.Name] = key
				if errs := validation.IsDNS1123Subdomain(created.Name); errs != nil {
					t.Errorf("name %s: %v", created.Name, errs)
				}
				if errs := validation.IsValidLabelValue(created.Labels[v1.NodeNameLabel]); errs != nil || created.Spec.NodeName != node {
					t.Errorf("label %q of node %s: %v", created.Labels[v1.NodeNameLabel], created.Spec.NodeName, errs)
				}
			}
		}
		if len(taken) != 4 {
			t.Errorf("%d names for 4 pods", len(taken))
		}
	})
}

func TestComputeUpdates(t *testing.T) {
	other := strings.Replace(resourceID, "Demo", "Other", 1)
	for name, test := range map[string]struct {
		current func(*v1.AzureAssignedIdentity)
		grant   func(*v1.AzureIdentity)
		status  string // of the update; empty: there is none
	}{
		"nothing changed":                             {},
		"the identity's metadata changed":             {grant: func(i *v1.AzureIdentity) { i.ResourceVersion, i.Labels = "8", map[string]string{"a": "b"} }},
		"the resourceID in another case":              {grant: func(i *v1.AzureIdentity) { i.Spec.ResourceID = strings.ToUpper(resourceID) }},
		"the clientID in another case":                {grant: func(i *v1.AzureIdentity) { i.Spec.ClientID = "abc" }},
		"a trailing slash":                            {grant: func(i *v1.AzureIdentity) { i.Spec.ResourceID = resourceID + "/" }},
		"another resourceID":                          {grant: func(i *v1.AzureIdentity) { i.Spec.ResourceID = other }, status: "Created"},
		"another clientID":                            {grant: func(i *v1.AzureIdentity) { i.Spec.ClientID = "DEF" }, status: "Created"},
		"another authority keeps the state":           {grant: func(i *v1.AzureIdentity) { i.Spec.ADEndpoint = "https://x" }, status: "Assigned"},
		"another node":                                {current: func(a *v1.AzureAssignedIdentity) { a.Spec.NodeName = "node-9" }, status: "Created"},
		"somebody took the label away":                {current: func(a *v1.AzureAssignedIdentity) { a.Labels = nil }, status: "Assigned"},
		"somebody edited the copy":                    {current: func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.ClientID = "x" }, status: "Created"},
		"somebody removed the copy":                   {current: func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef = nil }, status: "Created"},
		"another binding gives the same":              {current: func(a *v1.AzureAssignedIdentity) { a.Spec.AzureBindingRef.Name = "old" }, status: "Assigned"},
		"the old controller left it Unassigned":       {current: func(a *v1.AzureAssignedIdentity) { a.Status.Status = "Unassigned" }, status: "Created"},
		"the old controller's empty state is kept":    {current: func(a *v1.AzureAssignedIdentity) { a.Status.Status = "" }},
		"a copy with the old metadata means the same": {current: func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Annotations = map[string]string{"x": "y"} }},
		"the old controller wrote an empty Secret":    {current: func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.ClientPassword = &v1.SecretReference{} }},
		"the old controller's empty metadata":         {current: func(a *v1.AzureAssignedIdentity) { a.Spec.AzureIdentityRef.Spec.Metadata = &metav1.ObjectMeta{} }},
		"the copy is in the oldest spelling": {current: func(a *v1.AzureAssignedIdentity) {
			a.Spec.AzureIdentityRef.Spec = v1.AzureIdentitySpec{LegacyResourceID: resourceID, LegacyClientID: "ABC"}
		}},
		"the old controller's finalizer is released": {current: func(a *v1.AzureAssignedIdentity) { a.Finalizers = []string{v1.AssignedIdentityFinalizer} }, status: "Assigned"},
		"others' finalizers and labels stay": {current: func(a *v1.AzureAssignedIdentity) {
			a.Finalizers, a.Labels = []string{"x/y"}, map[string]string{"nodename": "node-0", "mine": "x"}
		}},
		"it served from another node while Created": {current: func(a *v1.AzureAssignedIdentity) { a.Status.Status, a.Spec.NodeName = "Created", "x" }, status: "Created"},
		"a hashed name is kept":                     {current: func(a *v1.AzureAssignedIdentity) { a.Name = hashedName(t) }},
		"one that is being deleted is left alone": {current: func(a *v1.AzureAssignedIdentity) {
			a.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
			a.Spec.NodeName = "x"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			current := made(t, grant(t, nil), v1.AssignedIDAssigned)
			current.UID = "u3"
			if test.current != nil {
				test.current(current)
			}
			s := snapshot(grant(t, test.grant))
			s.Current = []*v1.AzureAssignedIdentity{current}
			before := current.DeepCopy()
			changes := assignment.Compute(s)
			if diff := cmp.Diff(before, current); diff != "" {
				t.Errorf("the input was changed:\n%s", diff)
			}
			if test.status == "" {
				if !changes.Empty() {
					t.Fatalf("got %+v, want nothing", changes)
				}
				return
			}
			if len(changes.Update) != 1 || len(changes.Create)+len(changes.Delete) != 0 {
				t.Fatalf("got %+v, want one update", changes)
			}
			if got := changes.Update[0].To; got.Status.Status != test.status || got.UID != "u3" || got.Labels["nodename"] != "node-0" {
				t.Errorf("got %+v", got)
			}
			s.Current = []*v1.AzureAssignedIdentity{changes.Update[0].To}
			if again := assignment.Compute(s); !again.Empty() {
				t.Errorf("the update is not enough: %+v", again)
			}
		})
	}
}

func hashedName(t *testing.T) string {
	t.Helper()
	s := snapshot(grant(t, nil))
	s.Taken = func(string, string) bool { return true }
	return assignment.Compute(s).Create[0].Name
}

func TestComputeDeletes(t *testing.T) {
	current := made(t, grant(t, nil), v1.AssignedIDAssigned)
	for name, test := range map[string]struct {
		edit   func(*assignment.Snapshot)
		create int
	}{
		"no grant":         {func(s *assignment.Snapshot) { s.Grants = nil }, 0},
		"no node any more": {func(s *assignment.Snapshot) { s.Node = "" }, 0},
		"the install became namespaced, and it did not serve": {func(s *assignment.Snapshot) {
			s.Namespaced = true
			s.Current = []*v1.AzureAssignedIdentity{made(t, grant(t, nil), v1.AssignedIDCreated)}
		}, 1},
		"another identity in its place": {func(s *assignment.Snapshot) {
			s.Grants = []binding.Grant{grant(t, func(i *v1.AzureIdentity) { i.Name = "new" })}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(grant(t, nil))
			s.Current = []*v1.AzureAssignedIdentity{current}
			test.edit(&s)
			changes := assignment.Compute(s)
			if len(changes.Delete) != 1 || len(changes.Create) != test.create || len(changes.Update) != 0 {
				t.Errorf("got %+v", changes)
			}
		})
	}
}
