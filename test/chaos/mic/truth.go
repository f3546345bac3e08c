package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/sets"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

// truth is what is there, side by side. A place is a resource and an identity,
// their IDs in lower case with a blank between.
type truth struct {
	needed   map[string]string // places by pod
	foreign  sets.Set[string]  // places that others made
	azure    sets.Set[string]  // places that Azure shows
	assigned []v1.AzureAssignedIdentity
	records  []v1.AzureIdentityAttachment
}

func place(resource, identity string) string { return strings.ToLower(resource + " " + identity) }

// differences says what is not as it must be.
func (t truth) differences() []string {
	want := t.foreign.Clone()
	for _, p := range t.needed {
		want.Insert(p)
	}
	var out []string
	for _, p := range sets.List(want.Difference(t.azure)) {
		out = append(out, "missing in Azure: "+p)
	}
	for _, p := range sets.List(t.azure.Difference(want)) {
		out = append(out, "left behind in Azure: "+p)
	}
	out = append(out, t.wrongAssignments()...)
	return append(out, t.wrongRecords()...)
}

// wrongAssignments: each pod has one, which is Assigned, and nobody else has.
func (t truth) wrongAssignments() []string {
	var out []string
	missing := sets.KeySet(t.needed)
	for _, a := range t.assigned {
		if !missing.Has(a.Spec.Pod) {
			out = append(out, fmt.Sprintf("AzureAssignedIdentity %s is for no pod, or one too many", a.Name))
		}
		missing.Delete(a.Spec.Pod)
		if a.Status.Status != v1.AssignedIDAssigned || !meta.IsStatusConditionTrue(a.Status.Conditions, v1.ConditionReady) {
			out = append(out, fmt.Sprintf("AzureAssignedIdentity %s is %q: %v", a.Name, a.Status.Status, a.Status.Conditions))
		}
	}
	for _, pod := range sets.List(missing) {
		out = append(out, "without an AzureAssignedIdentity: "+pod)
	}
	return out
}

// wrongRecords: each says what Azure shows, and owns nothing that is others' or
// that no pod needs.
func (t truth) wrongRecords() []string {
	var out []string
	needed := sets.New[string]()
	for _, p := range t.needed {
		needed.Insert(p)
	}
	for _, r := range t.records {
		present := sets.New[string]()
		for _, id := range r.Status.Present {
			present.Insert(place(r.Spec.ResourceID, id))
		}
		shown := sets.New(slices.DeleteFunc(t.azure.UnsortedList(), func(p string) bool {
			return !strings.HasPrefix(p, strings.ToLower(r.Spec.ResourceID)+" ")
		})...)
		if !present.Equal(shown) {
			out = append(out, fmt.Sprintf("record %s shows %v, Azure %v", r.Name, sets.List(present), sets.List(shown)))
		}
		if !meta.IsStatusConditionTrue(r.Status.Conditions, v1.ConditionSynced) {
			out = append(out, fmt.Sprintf("record %s is not synced: %v", r.Name, r.Status.Conditions))
		}
		for _, owned := range r.Spec.Owned {
			if p := place(r.Spec.ResourceID, owned.ResourceID); owned.State != v1.OwnershipOwned || !needed.Has(p) {
				out = append(out, fmt.Sprintf("record %s says %s of %s", r.Name, owned.State, p))
			}
		}
	}
	return out
}

// verdict is what the requests to ARM say.
type verdict struct {
	requests, patches, refused int
	wrong                      []string
}

// read counts, and holds the requests against what must be: none that Azure does
// not offer, none refused by the controller's own fault, and of those that others
// made Azure refuse no more than a few for each time they did.
func read(entries []journal.Entry, bursts int) verdict {
	var out verdict
	for _, e := range entries {
		if e.Surface != journal.ARM {
			continue
		}
		out.requests++
		switch {
		case e.Unexpected:
			out.wrong = append(out.wrong, "Azure does not offer "+e.String())
		case e.IsOwnFault():
			out.wrong = append(out.wrong, "our own fault: "+e.String())
		case e.Throttle != nil:
			out.refused++
		case e.Method == http.MethodPatch:
			out.patches++
		}
	}
	if most := 3 * bursts; out.refused > most {
		out.wrong = append(out.wrong, fmt.Sprintf("ARM refused %d requests after %d bursts of others: want %d at most", out.refused, bursts, most))
	}
	if out.patches < 20 {
		out.wrong = append(out.wrong, fmt.Sprintf("only %d changes: too little happened to say anything", out.patches))
	}
	return out
}
