// Package report says what became of a plan, where people and agents look: on
// the assignments, on the resource's AzureIdentityAttachment, and as Events.
//
// It must not decide anything that is done to Azure.
package report

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// Outcome is how the resource stands.
type Outcome struct {
	// Record is the resource's record; without a UID there is none to report on.
	Record *v1.AzureIdentityAttachment
	// Needs are the assignments that need an identity on the resource.
	Needs []observe.Need
	// Wrote, if set, is told of each assignment that was changed, as the cache
	// showed it. It is called by several goroutines at once.
	Wrote func(shown *v1.AzureAssignedIdentity)
	// Seen is what ARM showed last; nil if it could not be asked.
	Seen *compute.Identities
	// There and Pending are of the plan; both are empty if Seen is nil.
	There, Pending []armid.ID
	// Quarantine is what ARM refused, Estranged what it shows with another client
	// ID, and Unconfirmed what was attached and not yet shown with the right one.
	Quarantine  quarantine.State
	Estranged   map[armid.ID]*plan.Estranged
	Unconfirmed map[armid.ID][]string
	// Err is what keeps everything that is pending.
	Err error
	// Unasked says that ARM could not be asked, to keep under its limits: what was
	// last said of what is pending, such as that ARM is away, stays.
	Unasked bool
	// Underway says that a patch is about to be sent. Of the assignments that it
	// is for, nothing is said before its end, unless ARM refused their identity:
	// what was last said, such as why the patch before it failed, stays till then.
	Underway bool
	// Operation is the last change asked for; nil leaves the one reported.
	Operation *v1.ARMOperation
	// RetryAfter is until when ARM has asked to wait; nil if it has not.
	RetryAfter *metav1.Time
	// RetryScope is what ARM wants left alone until then; empty if it did not say.
	RetryScope v1.RetryScope
}

// Reporter writes what an Outcome says.
type Reporter struct {
	Client client.Client
	Events *events.Recorder
	// Assigned, if set, is told of each assignment that has become usable.
	Assigned func(context.Context, *v1.AzureAssignedIdentity)
}

// Report writes the assignments' state and the record's status. Nothing is
// written that says the same already. One failed write does not keep the others
// from being tried.
func (r *Reporter) Report(ctx context.Context, o Outcome) error {
	due := o.due()
	failures := make([]error, len(due))
	var group errgroup.Group
	group.SetLimit(writesAtOnce)
	for i, change := range due {
		group.Go(func() error {
			failures[i] = r.change(ctx, o, change)
			return nil
		})
	}
	errWait := group.Wait()
	return errors.Join(errors.Join(failures...), errWait, r.record(ctx, o))
}

// writesAtOnce bounds the writes in flight for one resource, as the old
// controller did.
const writesAtOnce = 20

// verdict is what is said of one assignment.
type verdict struct {
	assigned bool
	reason   v1.Reason
	message  string
}

func (v verdict) state() string {
	if v.assigned {
		return v1.AssignedIDAssigned
	}
	return v1.AssignedIDCreated
}

func (v verdict) condition() metav1.Condition {
	out := metav1.Condition{Type: v1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(v.reason), Message: v.message}
	if v.assigned {
		out.Status = metav1.ConditionTrue
	}
	return out
}

// isSaid reports whether the assignment says so already.
func (v verdict) isSaid(a *v1.AzureAssignedIdentity) bool {
	want, has := v.condition(), meta.FindStatusCondition(a.Status.Conditions, v1.ConditionReady)
	return a.Status.Status == v.state() && has != nil &&
		has.Status == want.Status && has.Reason == want.Reason && has.Message == want.Message && has.ObservedGeneration == want.ObservedGeneration
}

// suspectMessage is said of an identity that may have to do with a refusal.
const suspectMessage = "Azure refused a request with this identity among others and did not say which it refuses; the controller is finding out"

// isThere is said of an identity that can be used.
func isThere() verdict {
	return verdict{assigned: true, reason: v1.ReasonAssigned, message: "the identity is on the node's virtual machine or scale set"}
}

// SaysThere reports whether an assignment says already that its identity can be
// used.
func SaysThere(a *v1.AzureAssignedIdentity) bool { return isThere().isSaid(a) }

func (o Outcome) verdict(id armid.ID) verdict {
	if slices.Contains(o.There, id) {
		return isThere()
	}
	if refusal, refused := o.Quarantine.Refused[id]; refused {
		return verdict{reason: refusal.Reason, message: refusal.Message}
	}
	if strange := o.Estranged[id]; strange != nil {
		return verdict{reason: v1.ReasonIdentityRecreated, message: recreatedMessage(id, o.resource(), strange.Mend)}
	}
	switch {
	case o.Err != nil:
		reason, message := Explain(o.Err)
		return verdict{reason: reason, message: message}
	case o.Quarantine.Suspect(id):
		return verdict{reason: v1.ReasonAttaching, message: suspectMessage}
	}
	return verdict{reason: v1.ReasonAttaching, message: kube.AttachingMessage}
}

func (o Outcome) resource() string {
	if o.Record == nil {
		return ""
	}
	return o.Record.Spec.ResourceID
}

// change is what is to be written to an assignment.
type change struct {
	observe.Need

	say verdict
}

// due returns the assignments of which something else is to be said than they
// say. There may be thousands of assignments, of a few identities.
func (o Outcome) due() []change {
	verdicts := map[armid.ID]verdict{}
	var out []change
	for _, need := range o.Needs {
		said, known := verdicts[need.ID]
		if !known {
			said = o.verdict(need.ID)
			verdicts[need.ID] = said
		}
		if !said.isSaid(need.Assignment) && !o.silent(need.Assignment, said) {
			out = append(out, change{need, said})
		}
	}
	return out
}

// silent reports whether nothing is said of an assignment now.
func (o Outcome) silent(a *v1.AzureAssignedIdentity, said verdict) bool {
	switch {
	case said.assigned, said.reason == v1.ReasonIdentityRefused:
		return false
	case o.Underway, o.stays(a.Status.Conditions, v1.ConditionReady, said.reason):
		return true
	}
	return o.Seen == nil && isAssigned(a) // it was there, and nobody says that it went
}

// change writes to one assignment.
func (r *Reporter) change(ctx context.Context, o Outcome, c change) error {
	if c.Behind {
		return apierrors.NewConflict(v1.GroupVersion.WithResource("azureassignedidentities").GroupResource(), c.Assignment.Name,
			errors.New("the cache does not show the last change yet"))
	}
	written, err := r.say(ctx, c.Assignment, c.say)
	if written && o.Wrote != nil {
		o.Wrote(c.Assignment)
	}
	return err
}

// stays reports whether what was last said of what is pending tells more than the
// reason now.
func (o Outcome) stays(said []metav1.Condition, kind string, reason v1.Reason) bool {
	return o.Unasked && reason == v1.ReasonAttaching && meta.IsStatusConditionFalse(said, kind)
}

func isAssigned(a *v1.AzureAssignedIdentity) bool {
	return a.Status.Status == v1.AssignedIDAssigned || a.Status.Status == v1.AssignedIDLegacy
}

func (r *Reporter) record(ctx context.Context, o Outcome) error {
	if o.Record == nil || o.Record.UID == "" {
		return nil
	}
	updated := o.Record.DeepCopy()
	status := &updated.Status
	status.ObservedGeneration, status.RetryAfter, status.RetryScope = updated.Generation, o.RetryAfter, o.RetryScope
	if o.Seen != nil {
		status.Present = texts(presentOf(*o.Seen))
		status.Pending = texts(o.Pending)
		status.Estranged = estranged(o.Estranged)
	}
	o.Quarantine.Write(status)
	status.Unconfirmed = unconfirmed(o.Unconfirmed)
	if o.Operation != nil {
		status.LastOperation = o.Operation
	}
	for _, condition := range conditions(o) {
		if o.stays(status.Conditions, condition.Type, v1.Reason(condition.Reason)) {
			continue
		}
		condition.ObservedGeneration = updated.Generation
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	if equality.Semantic.DeepEqual(updated.Status, o.Record.Status) {
		return nil
	}
	before := o.Record.DeepCopy()
	if err := r.Client.Status().Patch(ctx, updated, client.MergeFrom(before)); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("writing the status of %s: %w", client.ObjectKeyFromObject(updated), err))
	}
	*o.Record = *updated
	if synced := meta.FindStatusCondition(status.Conditions, v1.ConditionSynced); synced.Status == metav1.ConditionFalse && synced.Reason != string(v1.ReasonAttaching) {
		r.Events.Warn(events.Attachment(updated), "", synced.Reason, synced.Message)
	}
	return nil
}

// conditions are Synced and Throttled.
func conditions(o Outcome) []metav1.Condition {
	synced := metav1.Condition{Type: v1.ConditionSynced, Status: metav1.ConditionTrue, Reason: string(v1.ReasonSynced), Message: "the resource carries every identity that its pods need"}
	throttled := metav1.Condition{Type: v1.ConditionThrottled, Status: metav1.ConditionFalse, Reason: string(v1.ReasonSynced), Message: "ARM does not ask to wait"}
	switch {
	case o.Err != nil:
		reason, message := Explain(o.Err)
		synced.Status, synced.Reason, synced.Message = metav1.ConditionFalse, string(reason), message
		if reason == v1.ReasonThrottled {
			throttled.Status, throttled.Reason, throttled.Message = metav1.ConditionTrue, synced.Reason, message
		}
	case len(o.refused()) > 0:
		synced.Status, synced.Reason = metav1.ConditionFalse, string(v1.ReasonIdentityRefused)
		synced.Message = "Azure refuses " + few(o.refused()) + ": see status.refused"
	case o.recreated():
		synced.Status, synced.Reason = metav1.ConditionFalse, string(v1.ReasonIdentityRecreated)
		synced.Message = "identities were deleted and created again under their names: see status.estranged"
	case len(o.Pending) > 0, o.Seen == nil:
		synced.Status, synced.Reason, synced.Message = metav1.ConditionFalse, string(v1.ReasonAttaching), "waiting for Azure to attach identities: see status.pending"
	}
	return []metav1.Condition{synced, throttled}
}

// refused are the refused identities that a pod waits for.
func (o Outcome) refused() []armid.ID {
	return slices.DeleteFunc(slices.Clone(o.Pending), func(id armid.ID) bool { _, refused := o.Quarantine.Refused[id]; return !refused })
}

// recreated reports whether pods wait for identities that have no principal.
func (o Outcome) recreated() bool {
	return slices.ContainsFunc(o.Pending, func(id armid.ID) bool { return o.Estranged[id] != nil })
}

// few names the first of many.
func few(ids []armid.ID) string {
	const most = 5
	names := texts(ids[:min(most, len(ids))])
	if more := len(ids) - len(names); more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names, ", "), more)
	}
	return strings.Join(names, ", ")
}

func estranged(in map[armid.ID]*plan.Estranged) []v1.EstrangedIdentity {
	var out []v1.EstrangedIdentity
	for _, id := range sortedKeys(in) {
		out = append(out, v1.EstrangedIdentity{ResourceID: id.String(), ClientID: in[id].Shown})
	}
	return out
}

func unconfirmed(in map[armid.ID][]string) []v1.UnconfirmedIdentity {
	var out []v1.UnconfirmedIdentity
	for _, id := range sortedKeys(in) {
		out = append(out, v1.UnconfirmedIdentity{ResourceID: id.String(), ClientIDs: in[id]})
	}
	return out
}

// Unconfirmed reads what was written of identities that were attached and not yet
// shown with the right client ID.
func Unconfirmed(status v1.AzureIdentityAttachmentStatus) map[armid.ID][]string {
	out := map[armid.ID][]string{}
	for _, m := range status.Unconfirmed {
		if id, err := armid.Parse(m.ResourceID); err == nil {
			out[id] = m.ClientIDs
		}
	}
	return out
}

func sortedKeys[T any](in map[armid.ID]T) []armid.ID {
	return slices.SortedFunc(maps.Keys(in), armid.ID.Compare)
}

func presentOf(seen compute.Identities) []armid.ID {
	return sortedKeys(seen.Present)
}

func texts(ids []armid.ID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}
