package main

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

// right is a resource with a pod's identity and one of somebody else's.
func right() truth {
	is := func(kind string) []metav1.Condition {
		return []metav1.Condition{{Type: kind, Status: metav1.ConditionTrue}}
	}
	return truth{
		needed:  map[string]string{"web": place("/VM", "/Ours")},
		foreign: sets.New(place("/vm", "/theirs")),
		azure:   sets.New(place("/vm", "/ours"), place("/vm", "/theirs")),
		assigned: []v1.AzureAssignedIdentity{{
			Spec:   v1.AzureAssignedIdentitySpec{Pod: "web"},
			Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDAssigned, Conditions: is(v1.ConditionReady)},
		}},
		records: []v1.AzureIdentityAttachment{{
			Spec:   v1.AzureIdentityAttachmentSpec{ResourceID: "/vm", Owned: []v1.OwnedIdentity{{ResourceID: "/ours", State: v1.OwnershipOwned}}},
			Status: v1.AzureIdentityAttachmentStatus{Present: []string{"/ours", "/theirs"}, Conditions: is(v1.ConditionSynced)},
		}},
	}
}

func TestDifferences(t *testing.T) {
	for words, change := range map[string]func(*truth){
		"":                            func(*truth) {},
		"missing in Azure: /vm /ours": func(t *truth) { t.azure.Delete("/vm /ours"); t.records[0].Status.Present = []string{"/theirs"} },
		"missing in Azure: /vm /theirs": func(t *truth) {
			t.azure.Delete("/vm /theirs")
			t.records[0].Status.Present = []string{"/ours"}
		},
		"left behind in Azure: /vm /old": func(t *truth) {
			t.azure.Insert("/vm /old")
			t.records[0].Status.Present = append(t.records[0].Status.Present, "/old")
		},
		"is for no pod": func(t *truth) { t.assigned = append(t.assigned, t.assigned[0]) },
		`is "Created"`:  func(t *truth) { t.assigned[0].Status.Status = v1.AssignedIDCreated },
		`is "Assigned"`: func(t *truth) { t.assigned[0].Status.Conditions = nil },
		"without an":    func(t *truth) { t.assigned = nil },
		"shows [/vm /ours /vm /theirs], Azure": func(t *truth) {
			t.azure.Insert("/vm /new")
			t.foreign.Insert("/vm /new")
		},
		"is not synced":            func(t *truth) { t.records[0].Status.Conditions = nil },
		"says attaching":           func(t *truth) { t.records[0].Spec.Owned[0].State = v1.OwnershipAttaching },
		"says owned of /vm /their": func(t *truth) { t.records[0].Spec.Owned[0].ResourceID = "/theirs" },
	} {
		t.Run(words, func(t *testing.T) {
			now := right()
			change(&now)
			got := now.differences()
			if words == "" && len(got) == 0 {
				return
			}
			if len(got) != 1 || words == "" || !strings.Contains(got[0], words) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestRead(t *testing.T) {
	enough := make([]journal.Entry, 20)
	for i := range enough {
		enough[i] = journal.Entry{Surface: journal.ARM, Method: http.MethodPatch, Status: http.StatusOK}
	}
	theirs := journal.Entry{Surface: journal.ARM, Status: http.StatusTooManyRequests, Throttle: &journal.Throttle{Foreign: true}}
	for words, more := range map[string][]journal.Entry{
		"":                   {theirs, theirs, theirs},
		"does not offer":     {{Surface: journal.ARM, Unexpected: true}},
		"our own fault":      {{Surface: journal.ARM, Throttle: &journal.Throttle{}}},
		"refused 4 requests": {theirs, theirs, theirs, theirs},
		"only 20":            nil, // below
	} {
		entries := slices.Concat(more, enough)
		if words == "only 20" {
			entries, words = slices.Clone(enough[:19]), "only 19 changes"
		}
		got := read(append(entries, journal.Entry{Surface: journal.IMDS, Unexpected: true}), 1)
		if (words == "") != (len(got.wrong) == 0) || words != "" && !strings.Contains(got.wrong[0], words) {
			t.Errorf("%q: got %+v", words, got)
		}
	}
}
