package report

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// AssignmentKind is of what a Reporter patches, which it hands to its client as
// metadata of that kind.
const AssignmentKind = "AzureAssignedIdentity"

// Say writes the state and condition of one assignment that nothing can be
// attached for, and the Event that goes with a change. An assignment that changed
// since it was read is an error: what is said might not be true of it any more.
func (r *Reporter) Say(ctx context.Context, a *v1.AzureAssignedIdentity, reason v1.Reason, message string) error {
	_, err := r.say(ctx, a, verdict{reason: reason, message: message})
	return err
}

// say reports whether the API server has another version of the assignment now.
func (r *Reporter) say(ctx context.Context, a *v1.AzureAssignedIdentity, said verdict) (changed bool, err error) {
	if said.isSaid(a) {
		return false, nil
	}
	status := a.Status.DeepCopy()
	status.Status = said.state()
	meta.SetStatusCondition(&status.Conditions, said.condition())
	patch, err := statusPatch(a, status)
	if err != nil {
		return false, err
	}
	// Of the answer nothing counts but the version.
	written := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Name, UID: a.UID}}
	written.SetGroupVersionKind(v1.GroupVersion.WithKind(AssignmentKind))
	err = r.Client.Patch(ctx, written, patch)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("writing the state of assignment %s: %w", client.ObjectKeyFromObject(a), err)
	}
	r.tell(ctx, a, said)
	return written.ResourceVersion != a.ResourceVersion, nil
}

// statusPatch says the state and the conditions of an assignment, unless it has
// changed since it was read. It is made without a comparison of all that the
// assignment says, since nothing else differs.
func statusPatch(read *v1.AzureAssignedIdentity, status *v1.AzureAssignedIdentityStatus) (client.Patch, error) {
	var out struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Status struct {
			Status     string             `json:"status"`
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"status"`
	}
	out.Metadata.ResourceVersion = read.ResourceVersion
	out.Status.Status, out.Status.Conditions = status.Status, status.Conditions
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encoding the state of assignment %s: %w", client.ObjectKeyFromObject(read), err)
	}
	return client.RawPatch(types.MergePatchType, data), nil
}

func (r *Reporter) tell(ctx context.Context, a *v1.AzureAssignedIdentity, said verdict) {
	if said.assigned && !isAssigned(a) && r.Assigned != nil {
		r.Assigned(ctx, a)
	}
	if a.Spec.AzureBindingRef == nil || a.Spec.AzureIdentityRef == nil {
		return
	}
	binding, pod := events.Binding(a.Spec.AzureBindingRef), kube.PodOf(a).String()
	switch {
	case said.assigned && !isAssigned(a):
		r.Events.Forget(binding.UID, pod)
		r.Events.Normal(binding, events.BindingApplied, fmt.Sprintf("pod %s may use AzureIdentity %s", pod, a.Spec.AzureIdentityRef.Name))
	case !said.assigned && said.reason != v1.ReasonAttaching:
		r.Events.Warn(binding, pod, events.BindingApplyError, fmt.Sprintf("pod %s cannot use AzureIdentity %s yet: %s: %s", pod, a.Spec.AzureIdentityRef.Name, said.reason, said.message))
	}
}
