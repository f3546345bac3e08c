package nodereport

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

func well() Facts {
	return Facts{Version: "v1", Mode: "standard", Pod: "nmi-1", Placed: true, Target: "127.0.0.1:2579", Proof: "link", Probed: time.Unix(100, 5)}
}

func TestStatus(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Facts)
		kind   string
		status metav1.ConditionStatus
		reason v1.Reason
		words  string
	}{
		"ready":                     {func(*Facts) {}, v1.ConditionReady, metav1.ConditionTrue, v1.ReasonInForce, "served"},
		"not ready":                 {func(f *Facts) { f.Unready = errors.New("probe: nothing answers") }, v1.ConditionReady, metav1.ConditionFalse, v1.ReasonNotReady, "nothing answers"},
		"proven":                    {func(*Facts) {}, v1.ConditionCallersProven, metav1.ConditionTrue, v1.ReasonInForce, "links"},
		"proven on a bridge":        {func(f *Facts) { f.Proof = "bridge-port" }, v1.ConditionCallersProven, metav1.ConditionTrue, v1.ReasonInForce, "links"},
		"no pods":                   {func(f *Facts) { f.Proof = "" }, v1.ConditionCallersProven, metav1.ConditionUnknown, v1.ReasonInForce, "no pods"},
		"by address alone":          {func(f *Facts) { f.Proof, f.Why = "ip-only", "by eth0" }, v1.ConditionCallersProven, metav1.ConditionFalse, v1.ReasonAddressOnly, "by eth0"},
		"refused":                   {func(f *Facts) { f.Proof, f.Refused, f.Why = "ip-only", 3, "by ovs0" }, v1.ConditionCallersProven, metav1.ConditionFalse, v1.ReasonCallerUnproven, "3 addresses"},
		"the datapath is seen":      {func(*Facts) {}, v1.ConditionDatapathSeen, metav1.ConditionTrue, v1.ReasonInForce, "known"},
		"the datapath may go past":  {func(f *Facts) { f.Bypasses = []string{"one", "two"} }, v1.ConditionDatapathSeen, metav1.ConditionFalse, v1.ReasonDatapathBypass, "one; two"},
		"rules are on the node":     {func(*Facts) {}, v1.ConditionRulesOnNode, metav1.ConditionTrue, v1.ReasonInForce, "outlive"},
		"and are while damaged":     {func(f *Facts) { f.Rules = errors.New("gone") }, v1.ConditionRulesOnNode, metav1.ConditionTrue, v1.ReasonInForce, "outlive"},
		"rules are still to come":   {func(f *Facts) { f.Placed = false }, v1.ConditionRulesOnNode, metav1.ConditionUnknown, v1.ReasonNotReady, "not put its rules"},
		"a message that has no end": {func(f *Facts) { f.Bypasses = []string{strings.Repeat("x", 9999)} }, v1.ConditionDatapathSeen, metav1.ConditionFalse, v1.ReasonDatapathBypass, "xxx"},
	} {
		t.Run(name, func(t *testing.T) {
			facts := well()
			test.change(&facts)
			got := apimeta.FindStatusCondition(Status(facts, nil, time.Unix(200, 0)).Conditions, test.kind)
			if got == nil || got.Status != test.status || got.Reason != string(test.reason) || !strings.Contains(got.Message, test.words) || len(got.Message) > maxMessage {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestStatusSaysWhatIs(t *testing.T) {
	facts := well()
	got := Status(facts, nil, time.Unix(200, 0))
	if got.Version != "v1" || got.Mode != "standard" || got.Pod != "nmi-1" || got.Target != "127.0.0.1:2579" || got.CallerProof != "link" || !got.RulesInPlace || !got.Ready || got.LastProbe.Unix() != 100 {
		t.Errorf("got %+v", got)
	}
	facts.Rules, facts.Unready, facts.Probed = errors.New("gone"), errors.New("gone"), time.Time{}
	if got := Status(facts, nil, time.Unix(200, 0)); got.RulesInPlace || got.Ready || got.LastProbe != nil {
		t.Errorf("got %+v", got)
	}
}

func TestEnded(t *testing.T) {
	before := Status(well(), nil, time.Unix(200, 0))
	for reason, want := range map[v1.Reason]metav1.ConditionStatus{
		v1.ReasonRulesRemoved: metav1.ConditionFalse, v1.ReasonNoRules: metav1.ConditionFalse, v1.ReasonRulesLeft: metav1.ConditionTrue,
	} {
		got := Ended(before, End{reason, "why"}, time.Unix(300, 0))
		if got.Ready || got.RulesInPlace || got.Pod != "nmi-1" || got.Version != "v1" {
			t.Errorf("%s: got %+v", reason, got)
		}
		rules := apimeta.FindStatusCondition(got.Conditions, v1.ConditionRulesOnNode)
		if rules.Status != want || rules.Reason != string(reason) || rules.Message != "why" {
			t.Errorf("%s: got %+v", reason, rules)
		}
		if apimeta.IsStatusConditionTrue(got.Conditions, v1.ConditionReady) || len(got.Conditions) != 4 {
			t.Errorf("%s: got %+v", reason, got.Conditions)
		}
		// A new agent of the node takes it back.
		again := Status(well(), got.Conditions, time.Unix(400, 0))
		if !again.Ready || !apimeta.IsStatusConditionTrue(again.Conditions, v1.ConditionRulesOnNode) || !differs(got, again) {
			t.Errorf("%s, and a new agent: got %+v", reason, again)
		}
	}
	if !before.Ready || !apimeta.IsStatusConditionTrue(before.Conditions, v1.ConditionRulesOnNode) {
		t.Errorf("the status before was changed: %+v", before)
	}
	if got := Ended(v1.AzureIdentityNodeReportStatus{}, End{v1.ReasonRulesRemoved, "why"}, time.Unix(300, 0)); len(got.Conditions) != 2 {
		t.Errorf("an agent that never looked at itself: got %+v", got)
	}
}

func TestFailed(t *testing.T) {
	for clean, want := range map[bool]v1.Reason{true: v1.ReasonNoRules, false: v1.ReasonRulesLeft} {
		if got := Failed(errors.New("needs NET_ADMIN"), clean); got.Reason != want || !strings.HasSuffix(got.Message, ": needs NET_ADMIN") {
			t.Errorf("clean %t: got %+v", clean, got)
		}
	}
}

func TestLogSaysWhenItBegins(t *testing.T) {
	var out strings.Builder
	told := Log(slog.New(slog.NewTextHandler(&out, nil)))
	for _, err := range []error{nil, errors.New("one"), errors.New("two"), nil, errors.New("three")} {
		told(err)
	}
	if got := out.String(); strings.Count(got, "node report is not written") != 2 || !strings.Contains(got, "error=one") || !strings.Contains(got, "error=three") {
		t.Errorf("got %s", got)
	}
}

func TestAConditionKeepsSinceWhen(t *testing.T) {
	facts := well()
	first := Status(facts, nil, time.Unix(200, 0))
	facts.Unready = errors.New("late")
	second := Status(facts, first.Conditions, time.Unix(300, 0))
	for kind, want := range map[string]int64{v1.ConditionReady: 300, v1.ConditionCallersProven: 200} {
		if got := apimeta.FindStatusCondition(second.Conditions, kind).LastTransitionTime.Unix(); got != want {
			t.Errorf("%s since %d, want %d", kind, got, want)
		}
	}
	if got := apimeta.FindStatusCondition(first.Conditions, v1.ConditionReady).Status; got != metav1.ConditionTrue {
		t.Errorf("the status before was changed: %s", got)
	}
}

func TestDiffers(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Facts)
		want   bool
	}{
		"nothing":           {func(*Facts) {}, false},
		"a later probe":     {func(f *Facts) { f.Probed = time.Unix(900, 0) }, false},
		"another version":   {func(f *Facts) { f.Version = "v2" }, true},
		"another proof":     {func(f *Facts) { f.Proof = "bridge-port" }, true},
		"rules are gone":    {func(f *Facts) { f.Rules = errors.New("gone") }, true},
		"another pod":       {func(f *Facts) { f.Pod = "nmi-2" }, true},
		"rules are placed":  {func(f *Facts) { f.Placed = false }, true},
		"another complaint": {func(f *Facts) { f.Bypasses = []string{"new"} }, true},
	} {
		before, after := well(), well()
		test.change(&after)
		first := Status(before, nil, time.Unix(200, 0))
		if got := differs(first, Status(after, first.Conditions, time.Unix(300, 0))); got != test.want {
			t.Errorf("%s: differs %v", name, got)
		}
	}
}
