package report

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
)

func id(t *testing.T, name string) armid.ID {
	t.Helper()
	out, err := armid.Parse("/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// outcome is of a resource that carries "there", refuses "bad" and waits for the
// others.
func outcome(t *testing.T) Outcome {
	t.Helper()
	return Outcome{
		Record: &v1.AzureIdentityAttachment{Spec: v1.AzureIdentityAttachmentSpec{ResourceID: "/the/resource"}},
		Seen:   &compute.Identities{}, There: []armid.ID{id(t, "there")},
		Pending: []armid.ID{id(t, "bad"), id(t, "hollow"), id(t, "new"), id(t, "suspect")},
		Quarantine: quarantine.State{
			Refused: map[armid.ID]quarantine.Refusal{id(t, "bad"): {Reason: v1.ReasonIdentityRefused, Message: "ARM's words"}},
			Unsure:  []armid.ID{id(t, "suspect")},
		},
		Estranged: map[armid.ID]*plan.Estranged{id(t, "hollow"): {}, id(t, "there"): {Shown: "x"}},
	}
}

func TestVerdict(t *testing.T) {
	throttled := &armclient.ThrottledError{Message: "slow"}
	for name, test := range map[string]struct {
		identity string
		change   func(*Outcome)
		assigned bool
		reason   v1.Reason
		words    string
	}{
		"there":                              {"there", nil, true, v1.ReasonAssigned, "is on"},
		"there, whatever else fails":         {"there", func(o *Outcome) { o.Err = throttled }, true, v1.ReasonAssigned, ""},
		"refused":                            {"bad", nil, false, v1.ReasonIdentityRefused, "ARM's words"},
		"refused, while ARM asks to wait":    {"bad", func(o *Outcome) { o.Err = throttled }, false, v1.ReasonIdentityRefused, "ARM's words"},
		"suspected":                          {"suspect", nil, false, v1.ReasonAttaching, "is finding out"},
		"suspected, while ARM asks to wait":  {"suspect", func(o *Outcome) { o.Err = throttled }, false, v1.ReasonThrottled, "slow"},
		"new":                                {"new", nil, false, v1.ReasonAttaching, "waiting"},
		"without a principal, somebody's":    {"hollow", nil, false, v1.ReasonIdentityRecreated, "from /the/resource (az vmss identity remove"},
		"without a principal, and ours":      {"hollow", func(o *Outcome) { o.Estranged[id(t, "hollow")].Mend = true }, false, v1.ReasonIdentityRecreated, "attaches it anew"},
		"without a principal, none recorded": {"hollow", func(o *Outcome) { o.Record = nil }, false, v1.ReasonIdentityRecreated, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := outcome(t)
			if test.change != nil {
				test.change(&o)
			}
			got := o.verdict(id(t, test.identity))
			if got.assigned != test.assigned || got.reason != test.reason || !strings.Contains(got.message, test.words) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestConditions(t *testing.T) {
	only := func(ids ...armid.ID) func(*Outcome) { return func(o *Outcome) { o.Pending = ids } }
	var many []armid.ID
	crowd := outcome(t)
	for i := range 9 {
		bad := id(t, fmt.Sprintf("bad-%d", i))
		many = append(many, bad)
		crowd.Quarantine.Refused[bad] = quarantine.Refusal{}
	}
	for name, test := range map[string]struct {
		change    func(*Outcome)
		synced    v1.Reason
		words     string
		throttled metav1.ConditionStatus
	}{
		"all there":                           {only(), v1.ReasonSynced, "every identity", metav1.ConditionFalse},
		"waiting":                             {only(id(t, "new")), v1.ReasonAttaching, "status.pending", metav1.ConditionFalse},
		"refused":                             {func(*Outcome) {}, v1.ReasonIdentityRefused, "bad: see", metav1.ConditionFalse},
		"many refused":                        {func(o *Outcome) { o.Pending, o.Quarantine = many, crowd.Quarantine }, v1.ReasonIdentityRefused, "bad-4 and 4 more", metav1.ConditionFalse},
		"recreated":                           {only(id(t, "hollow")), v1.ReasonIdentityRecreated, "status.estranged", metav1.ConditionFalse},
		"throttled":                           {func(o *Outcome) { o.Err = &armclient.ThrottledError{Message: "slow"} }, v1.ReasonThrottled, "slow", metav1.ConditionTrue},
		"not looked at: nobody says all good": {func(o *Outcome) { o.Seen, o.Pending = nil, nil }, v1.ReasonAttaching, "", metav1.ConditionFalse},
	} {
		t.Run(name, func(t *testing.T) {
			o := outcome(t)
			test.change(&o)
			got := conditions(o)
			if got[0].Reason != string(test.synced) || !strings.Contains(got[0].Message, test.words) || got[1].Status != test.throttled {
				t.Errorf("got %+v", got)
			}
			if (got[0].Status == metav1.ConditionTrue) != (test.synced == v1.ReasonSynced) {
				t.Errorf("synced is %s", got[0].Status)
			}
		})
	}
}

// TestUnasked: while the controller keeps off, what it said of what is pending
// stays, and nothing else.
func TestUnasked(t *testing.T) {
	said := []metav1.Condition{{Type: v1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(v1.ReasonARMUnavailable)}}
	assigned := []metav1.Condition{{Type: v1.ConditionReady, Status: metav1.ConditionTrue, Reason: string(v1.ReasonAssigned)}}
	for name, test := range map[string]struct {
		unasked bool
		said    []metav1.Condition
		now     v1.Reason
		want    bool
	}{
		"why it waits":             {true, said, v1.ReasonAttaching, true},
		"it was asked":             {false, said, v1.ReasonAttaching, false},
		"nothing was said":         {true, nil, v1.ReasonAttaching, false},
		"it is assigned":           {true, said, v1.ReasonAssigned, false},
		"it was assigned":          {true, assigned, v1.ReasonAttaching, false},
		"it is refused meanwhile":  {true, said, v1.ReasonIdentityRefused, false},
		"it was recreated in time": {true, said, v1.ReasonIdentityRecreated, false},
	} {
		if got := (Outcome{Unasked: test.unasked}).stays(test.said, v1.ConditionReady, test.now); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestUnconfirmed(t *testing.T) {
	in := map[armid.ID][]string{id(t, "b"): {"x", "y"}, id(t, "a"): nil}
	status := v1.AzureIdentityAttachmentStatus{Unconfirmed: unconfirmed(in)}
	if diff := cmp.Diff(in, Unconfirmed(status), cmp.Comparer(func(a, b armid.ID) bool { return a == b })); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
	status.Unconfirmed = append(status.Unconfirmed, v1.UnconfirmedIdentity{ResourceID: "odd"})
	if got := Unconfirmed(status); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

// TestStatusPatch: nothing but the state is written, and only to the version that
// was read.
func TestStatusPatch(t *testing.T) {
	read := &v1.AzureAssignedIdentity{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "7", Labels: map[string]string{"kept": "by others"}}}
	at := metav1.NewTime(time.Unix(1000, 0).UTC())
	patch, err := statusPatch(read, &v1.AzureAssignedIdentityStatus{Status: "Assigned", Conditions: []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Assigned", LastTransitionTime: at}}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := patch.Data(nil)
	if err != nil || patch.Type() != types.MergePatchType {
		t.Fatalf("%s: %v", patch.Type(), err)
	}
	const want = `{"metadata":{"resourceVersion":"7"},"status":{"status":"Assigned","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"1970-01-01T00:16:40Z","reason":"Assigned","message":""}]}}`
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Error(diff)
	}
}

// TestSaysThere: what is written of an identity that is there is what is looked for.
func TestSaysThere(t *testing.T) {
	a := &v1.AzureAssignedIdentity{Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDAssigned}}
	if SaysThere(a) {
		t.Error("it has no condition")
	}
	a.Status.Conditions = []metav1.Condition{isThere().condition()}
	if !SaysThere(a) {
		t.Error("it is not found")
	}
	if a.Status.Status = v1.AssignedIDCreated; SaysThere(a) {
		t.Error("it is Created")
	}
}
