package scenarios_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/equality"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/test/scenarios"
)

// outcome is how things stand, in the words of the files.
type outcome struct {
	assignments []*v1.AzureAssignedIdentity
	attached    map[string][]string // by resource
	null        map[string][]string
	owned       map[string][]string
	patches     map[string]int
	created     int
	deleted     int
	rewritten   int
}

// isRewritten reports whether an assignment got another content or lost what
// Azure had done for it.
func isRewritten(from, to *v1.AzureAssignedIdentity) bool {
	lost := from.Status.Status == v1.AssignedIDAssigned && to.Status.Status != v1.AssignedIDAssigned
	return lost || !equality.Semantic.DeepEqual(from.Spec, to.Spec) || !equality.Semantic.DeepEqual(from.Labels, to.Labels)
}

// statuses are the assignments by pod and AzureIdentity.
func (o outcome) statuses(p scenarios.Place) map[string]map[string]string {
	return byPod(p, o.assignments, func(a *v1.AzureAssignedIdentity) string { return a.Status.Status })
}

func byPod(p scenarios.Place, all []*v1.AzureAssignedIdentity, say func(*v1.AzureAssignedIdentity) string) map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, a := range all {
		pod := p.Key(a.Spec.PodNamespace, a.Spec.Pod)
		if out[pod] == nil {
			out[pod] = map[string]string{}
		}
		name := "?"
		if ref := a.Spec.AzureIdentityRef; ref != nil {
			name = p.Key(ref.Namespace, ref.Name)
		}
		out[pod][name] = say(a)
	}
	return out
}

// differs says what is not as a step expects, or "".
func (o outcome) differs(p scenarios.Place, e scenarios.Expect) string {
	var out strings.Builder
	compare := func(what string, want, got any) {
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			fmt.Fprintf(&out, "%s (-expected +there):\n%s", what, diff)
		}
	}
	if e.Pods != nil {
		compare("assignments", expanded(p, e.Pods), o.statuses(p))
	}
	for on, want := range e.Azure {
		compare("attached to "+on, sorted(want), sorted(o.attached[on]))
	}
	for on, want := range e.Owned {
		compare("owned on "+on, sorted(want), sorted(o.owned[on]))
	}
	for on, want := range e.NullPrincipals {
		compare("null principals of "+on, sorted(want), sorted(o.null[on]))
	}
	for on, want := range e.Patches {
		out.WriteString(miscounted("PATCHes of "+on, &want, o.patches[on]))
	}
	out.WriteString(miscounted("assignments created", e.Created, o.created))
	out.WriteString(miscounted("assignments deleted", e.Deleted, o.deleted))
	out.WriteString(miscounted("assignments rewritten", e.Rewritten, o.rewritten))
	names := byPod(p, o.assignments, func(a *v1.AzureAssignedIdentity) string { return a.Name })
	for pod, want := range e.Names {
		for identity, name := range want {
			compare("name for "+pod+" and "+identity, p.Expand(name), names[pod][identity])
		}
	}
	return out.String()
}

// lacks says which assignments there are not, or should not be, whatever their
// status.
func (o outcome) lacks(p scenarios.Place, e scenarios.Expect) string {
	want := map[string]map[string]string{}
	for pod, statuses := range expanded(p, e.Pods) {
		want[pod] = map[string]string{}
		for identity := range statuses {
			want[pod][identity] = ""
		}
	}
	return cmp.Diff(want, byPod(p, o.assignments, func(*v1.AzureAssignedIdentity) string { return "" }))
}

func miscounted(what string, want *scenarios.Count, got int) string {
	if want == nil || want.Holds(got) {
		return ""
	}
	return fmt.Sprintf("%s: %d, expected %s\n", what, got, want)
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// expanded gives pods their full names.
func expanded[V any](p scenarios.Place, m map[string]V) map[string]V {
	out := map[string]V{}
	for pod, v := range m {
		out[p.Expand(pod)] = v
	}
	return out
}

// attachedTo are the short names of what is on each of a story's resources, and
// of what is there without a principal.
func attachedTo(azure *state.State, p scenarios.Place) (out, null map[string][]string) {
	out, null = map[string][]string{}, map[string][]string{}
	for _, short := range resourcesOf(p) {
		id, err := azure.Find(p.Attachment(short, "").ScaleSet, p.Attachment(short, "").VM)
		if err != nil {
			continue
		}
		shown, err := azure.Resource(scenarios.ControllerObjectID, id)
		if err != nil {
			continue
		}
		for _, i := range shown.User {
			name := p.ManagedName(i.ID.String())
			out[short] = append(out[short], name)
			if i.PrincipalID == "" {
				null[short] = append(null[short], name)
			}
		}
		if shown.System != nil {
			out[short] = append(out[short], scenarios.SystemAssigned)
		}
	}
	return out, null
}

func resourcesOf(p scenarios.Place) []string {
	return slices.AppendSeq(slices.Collect(maps.Keys(p.Given.Azure.ScaleSets)), maps.Keys(p.Given.Azure.VMs))
}

// ownedOf are the short names of what records hold for the controller's own.
func ownedOf(p scenarios.Place, records []v1.OwnedIdentity) []string {
	var out []string
	for _, r := range records {
		name := p.ManagedName(r.ResourceID)
		if r.State != v1.OwnershipOwned {
			name += " (" + string(r.State) + ")"
		}
		out = append(out, name)
	}
	return out
}
