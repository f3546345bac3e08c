package assignment_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
)

// what counts the changes by kind.
func what(c assignment.Changes) [3]int { return [3]int{len(c.Create), len(c.Update), len(c.Delete)} }

// TestNamespacedFlip: an assignment moves to the namespace of the other mode
// without a moment in which the pod has none that serves.
func TestNamespacedFlip(t *testing.T) {
	there := made(t, grant(t, nil), v1.AssignedIDAssigned) // in default
	for name, test := range map[string]struct {
		beside *v1.AzureAssignedIdentity // in the identity's namespace
		edit   func(*assignment.Snapshot)
		want   [3]int
	}{
		"first the new one is made":           {want: [3]int{1, 0, 0}},
		"the old one serves while it is made": {beside: madeIn(t, "ids", v1.AssignedIDCreated)},
		"the old one serves while the new one is still being deleted": {beside: func() *v1.AzureAssignedIdentity {
			a := madeIn(t, "ids", v1.AssignedIDAssigned)
			a.DeletionTimestamp = &metav1.Time{Time: now}
			return a
		}()},
		"then the old one goes":                               {beside: madeIn(t, "ids", v1.AssignedIDAssigned), want: [3]int{0, 0, 1}},
		"the pod lost its grant meanwhile: both go":           {beside: madeIn(t, "ids", v1.AssignedIDCreated), edit: func(s *assignment.Snapshot) { s.Grants = nil }, want: [3]int{0, 0, 2}},
		"another principal since: the old one serves no more": {edit: func(s *assignment.Snapshot) { s.Grants[0].Object.Spec.ClientID = "other" }, want: [3]int{1, 0, 1}},
		"the pod is on another node: the old one is no help":  {edit: func(s *assignment.Snapshot) { s.Node = "node-9" }, want: [3]int{1, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(grant(t, nil))
			s.Namespaced, s.Current = true, []*v1.AzureAssignedIdentity{there}
			if test.beside != nil {
				s.Current = append(s.Current, test.beside)
			}
			if test.edit != nil {
				test.edit(&s)
			}
			if got := assignment.Compute(s); what(got) != test.want {
				t.Errorf("got %+v, want %v created, updated, deleted", got, test.want)
			}
		})
	}
}

func madeIn(t *testing.T, namespace, status string) *v1.AzureAssignedIdentity {
	t.Helper()
	a := made(t, grant(t, nil), status)
	a.Namespace = namespace
	return a
}

// TestBeingDeleted: what somebody is deleting is let go and made again, never
// written otherwise.
func TestBeingDeleted(t *testing.T) {
	for name, test := range map[string]struct {
		finalizers []string
		granted    bool
		want       [3]int
		left       []string // finalizers of the update
	}{
		"still granted, held by the old controller": {finalizers: []string{v1.AssignedIdentityFinalizer}, granted: true, want: [3]int{0, 1, 0}},
		"held by somebody else too":                 {finalizers: []string{"x/y", v1.AssignedIdentityFinalizer}, granted: true, want: [3]int{0, 1, 0}, left: []string{"x/y"}},
		"held by somebody else only":                {finalizers: []string{"x/y"}, granted: true},
		"not granted, held by the old controller":   {finalizers: []string{v1.AssignedIdentityFinalizer}, want: [3]int{0, 0, 1}},
		"not granted, held by somebody else":        {finalizers: []string{"x/y"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(grant(t, nil))
			current := made(t, grant(t, nil), v1.AssignedIDUnassigned)
			current.Finalizers, current.DeletionTimestamp = test.finalizers, &metav1.Time{Time: now}
			s.Current = []*v1.AzureAssignedIdentity{current}
			if !test.granted {
				s.Grants = nil
			}
			got := assignment.Compute(s)
			if what(got) != test.want {
				t.Fatalf("got %+v, want %v created, updated, deleted", got, test.want)
			}
			for _, update := range got.Update {
				if len(update.To.Finalizers) != len(test.left) || !cmp.Equal(update.From.Spec, update.To.Spec) || update.From.Status.Status != update.To.Status.Status {
					t.Errorf("more than the finalizer changes: %s", cmp.Diff(update.From, update.To))
				}
			}
		})
	}
}

// TestConditionsFollow: a condition is never left to speak of what the
// assignment no longer is.
func TestConditionsFollow(t *testing.T) {
	refused := []metav1.Condition{{Type: "Ready", Status: "False", Reason: "IdentityRefused", LastTransitionTime: metav1.NewTime(now)}}
	attached := []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Assigned", LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
	principal := func(i *v1.AzureIdentity) {
		i.Spec = v1.AzureIdentitySpec{Type: 1, ClientID: "ABC", TenantID: "t", ClientPassword: &v1.SecretReference{Name: "n", Namespace: "s"}}
	}
	for name, test := range map[string]struct {
		was, is    func(*v1.AzureIdentity)
		status     string
		conditions []metav1.Condition
		want       string // status, reason of the update; empty: there is none
	}{
		"a refused identity is mended":                  {is: func(i *v1.AzureIdentity) { i.Spec.ClientID = "DEF" }, status: "Created", conditions: refused, want: "Created Attaching"},
		"a managed identity becomes a principal":        {is: principal, status: "Assigned", conditions: attached, want: "Assigned Assigned"},
		"a principal becomes a managed identity":        {was: principal, status: "Assigned", want: "Created Attaching"},
		"a principal that waits for Azure":              {was: principal, is: principal, status: "Created", want: "Assigned Assigned"},
		"a principal with an old word of Azure":         {was: principal, is: principal, status: "Assigned", conditions: refused, want: "Assigned Assigned"},
		"an old principal's assignment without words":   {was: principal, is: principal, status: "Assigned"},
		"an older one's, without a state":               {was: principal, is: principal, status: ""},
		"the attachment's words on the same stay":       {status: "Created", conditions: refused},
		"what the old controller was about to take off": {status: "Unassigned", conditions: attached, want: "Created Attaching"},
	} {
		t.Run(name, func(t *testing.T) {
			current := made(t, grant(t, test.was), test.status)
			current.Status.Conditions = test.conditions
			s := snapshot(grant(t, test.is))
			s.Current = []*v1.AzureAssignedIdentity{current}
			got := ""
			for _, update := range assignment.Compute(s).Update {
				got = update.To.Status.Status + " " + update.To.Status.Conditions[0].Reason
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestTell(t *testing.T) {
	refusal := func(reason v1.Reason, winner string) binding.Refusal {
		r := binding.Refusal{Reason: reason, Message: "because", Object: &v1.AzureIdentityBinding{}}
		r.Winner.Namespace = winner
		return r
	}
	own, foreign := grant(t, func(i *v1.AzureIdentity) { i.Namespace = "apps" }), grant(t, nil)
	for name, test := range map[string]struct {
		decision  binding.Decision
		pod       map[v1.Reason]string
		conflicts int
	}{
		"its own namespace's identity goes before others": {
			binding.Decision{Grants: []binding.Grant{own}, Refusals: []binding.Refusal{refusal(v1.ReasonNameConflict, "apps"), refusal(v1.ReasonNameConflict, "apps")}},
			map[v1.Reason]string{}, 2,
		},
		"a foreign identity goes before others": {
			binding.Decision{Grants: []binding.Grant{foreign}, Refusals: []binding.Refusal{refusal(v1.ReasonNameConflict, "ids"), refusal(v1.ReasonNameConflict, "ids"), refusal(v1.ReasonNameConflict, "ids")}},
			map[v1.Reason]string{v1.ReasonNameConflict: "because (and 2 more like this)"}, 3,
		},
		"namesakes of other namespaces are theirs": {
			binding.Decision{Grants: []binding.Grant{own}, Refusals: []binding.Refusal{refusal(v1.ReasonNamespaceMismatch, "")}},
			map[v1.Reason]string{}, 0,
		},
		"nothing but another namespace's": {
			binding.Decision{Refusals: []binding.Refusal{refusal(v1.ReasonNamespaceMismatch, "")}},
			map[v1.Reason]string{v1.ReasonNamespaceMismatch: "because"}, 0,
		},
		"what a condition says already": {
			binding.Decision{Refusals: []binding.Refusal{refusal(v1.ReasonIdentityNotFound, ""), refusal(v1.ReasonInvalidBinding, "")}},
			map[v1.Reason]string{}, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := assignment.Tell("apps", test.decision)
			if diff := cmp.Diff(test.pod, got.Pod); diff != "" || len(got.Conflicts) != test.conflicts {
				t.Errorf("got %d conflicts and (-want +got):\n%s", len(got.Conflicts), diff)
			}
		})
	}
}
