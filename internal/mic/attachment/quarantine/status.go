package quarantine

import (
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

// Parse reads the state that [State.Write] wrote. What names no identity is left
// out.
func Parse(status v1.AzureIdentityAttachmentStatus) State {
	out := State{Refused: map[armid.ID]Refusal{}}
	for _, r := range status.Refused {
		id, err := armid.Parse(r.ResourceID)
		if err != nil {
			continue
		}
		out.Refused[id] = Refusal{
			Reason: r.Reason, Message: r.Message, RetryAfter: timeOf(r.RetryAfter),
			Attempts: int(r.Attempts), Named: r.Named, Identities: r.Identities,
		}
	}
	if status.Isolation == nil {
		return out
	}
	out.Unsure = without(parse(status.Isolation.Unsure), slices.Collect(maps.Keys(out.Refused)))
	for _, group := range status.Isolation.Groups {
		ids := slices.DeleteFunc(parse(group.ResourceIDs), out.knows)
		if len(ids) > 0 {
			out.Groups = append(out.Groups, ids)
		}
	}
	if len(out.suspects()) > 0 {
		out.Streak, out.Until = int(status.Isolation.Refusals), timeOf(status.Isolation.RetryAfter)
	}
	return out
}

// Write puts the state into a status. Times are kept to the second.
func (s State) Write(status *v1.AzureIdentityAttachmentStatus) {
	status.Refused, status.Isolation = nil, nil
	for _, id := range slices.SortedFunc(maps.Keys(s.Refused), armid.ID.Compare) {
		r := s.Refused[id]
		status.Refused = append(status.Refused, v1.RefusedIdentity{
			ResourceID: id.String(), Reason: r.Reason, Message: r.Message, RetryAfter: metaOf(r.RetryAfter),
			Attempts: int32(min(r.Attempts, 1<<20)), Named: r.Named, Identities: r.Identities, //nolint:gosec // bounded just here
		})
	}
	if len(s.Groups) == 0 && len(s.Unsure) == 0 {
		return
	}
	isolation := &v1.Isolation{Unsure: texts(s.Unsure), Refusals: int32(min(s.Streak, 1<<20)), RetryAfter: metaOf(s.Until)} //nolint:gosec // bounded just here
	for _, group := range s.Groups {
		isolation.Groups = append(isolation.Groups, v1.SuspectGroup{ResourceIDs: texts(group)})
	}
	status.Isolation = isolation
}

func parse(in []string) []armid.ID {
	var out []armid.ID
	for _, text := range in {
		if id, err := armid.Parse(text); err == nil {
			out = append(out, id)
		}
	}
	return sorted(out)
}

func texts(ids []armid.ID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}

func timeOf(t *metav1.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

func metaOf(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t}
}
