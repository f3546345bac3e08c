package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// OwnershipState says how sure it is that the controller attached an identity.
//
// +kubebuilder:validation:Enum=attaching;owned;inherited
type OwnershipState string

// The states of an [OwnedIdentity].
const (
	// OwnershipAttaching is recorded before the request to ARM, for an identity
	// that was absent when the resource was observed. A request with the ETag
	// seen then may have attached it.
	OwnershipAttaching OwnershipState = "attaching"
	// OwnershipOwned is recorded once the request that carried the identity has
	// succeeded.
	OwnershipOwned OwnershipState = "owned"
	// OwnershipInherited is recorded where AAD Pod Identity v1.8.17 or older has
	// said, by an assignment of its own, that it attached the identity. It is
	// owned if it is on the resource when that is first observed.
	OwnershipInherited OwnershipState = "inherited"
)

// OwnedIdentity is an identity that the controller attached, or is attaching.
type OwnedIdentity struct {
	// resourceID is the ARM ID of the user-assigned identity, in lower case.
	ResourceID string `json:"resourceID"`
	// state is attaching, owned or inherited.
	State OwnershipState `json:"state"`
	// etag is the resource's ETag when it was observed without the identity.
	// +optional
	ETag string `json:"etag,omitempty"`
}

// AzureIdentityAttachmentSpec is the controller's record for one virtual machine
// or scale set. Nothing is ever detached that is not in it.
type AzureIdentityAttachmentSpec struct {
	// resourceID is the ARM ID of the virtual machine or scale set, in lower case.
	// +kubebuilder:validation:MinLength=1
	ResourceID string `json:"resourceID"`

	// owned lists what the controller attached.
	// +optional
	// +listType=map
	// +listMapKey=resourceID
	Owned []OwnedIdentity `json:"owned,omitempty"`
}

// RefusedIdentity is an identity that Azure does not let the controller attach.
type RefusedIdentity struct {
	// resourceID is the ARM ID of the user-assigned identity, in lower case.
	ResourceID string `json:"resourceID"`
	// reason is one of the Reasons of this API.
	Reason Reason `json:"reason"`
	// message is Azure's own, with the remedy where it is known.
	// +optional
	Message string `json:"message,omitempty"`
	// retryAfter is when the controller tries again.
	// +optional
	RetryAfter *metav1.Time `json:"retryAfter,omitempty"`
	// attempts is how often Azure has refused it in a row.
	// +optional
	Attempts int32 `json:"attempts,omitempty"`
	// named says that Azure's message named it. One that it did not name was
	// found by trying it alone.
	// +optional
	Named bool `json:"named,omitempty"`
	// identities are the AzureIdentities that name it, as they were when it was
	// refused: UID@generation. When one of them is edited it is tried again.
	// +optional
	// +listType=atomic
	Identities []string `json:"identities,omitempty"`
}

// SuspectGroup is a set of identities of which Azure refuses at least one.
type SuspectGroup struct {
	// resourceIDs are the ARM IDs of the identities, in lower case.
	// +listType=atomic
	ResourceIDs []string `json:"resourceIDs"`
}

// Isolation is the search for the identities for which Azure refuses requests
// without naming them. What is left of a refused request is tried in parts, so
// that the good ones among them go through.
type Isolation struct {
	// groups are known to hold an identity each that Azure refuses.
	// +optional
	// +listType=atomic
	Groups []SuspectGroup `json:"groups,omitempty"`
	// unsure were in a request that Azure refused, and may all be good.
	// +optional
	// +listType=atomic
	Unsure []string `json:"unsure,omitempty"`
	// refusals is how many requests in a row Azure refused in the search.
	// +optional
	Refusals int32 `json:"refusals,omitempty"`
	// retryAfter is when the search goes on, where it has to wait.
	// +optional
	RetryAfter *metav1.Time `json:"retryAfter,omitempty"`
}

// UnconfirmedIdentity is an identity that the controller attached and that Azure
// has not shown since with a client ID of the AzureIdentities that name it.
type UnconfirmedIdentity struct {
	// resourceID is the ARM ID of the user-assigned identity, in lower case.
	ResourceID string `json:"resourceID"`
	// clientIDs are those that the AzureIdentities had then, in lower case. It is
	// not attached anew for the same ones.
	// +optional
	// +listType=atomic
	ClientIDs []string `json:"clientIDs,omitempty"`
}

// EstrangedIdentity is an identity for which Azure shows another client ID on
// the resource than every AzureIdentity that names it.
type EstrangedIdentity struct {
	// resourceID is the ARM ID of the user-assigned identity, in lower case.
	ResourceID string `json:"resourceID"`
	// clientID is what Azure shows, in lower case; empty where no principal is
	// behind the identity any more.
	// +optional
	ClientID string `json:"clientID,omitempty"`
}

// OperationResult is how an operation stands.
//
// +kubebuilder:validation:Enum=Running;Succeeded;Failed;Unknown
type OperationResult string

// The results of an [ARMOperation].
const (
	OperationRunning   OperationResult = "Running"
	OperationSucceeded OperationResult = "Succeeded"
	OperationFailed    OperationResult = "Failed"
	// OperationUnknown: nobody heard of its end. What is on the resource tells.
	OperationUnknown OperationResult = "Unknown"
)

// ARMOperation is the last change that the controller asked ARM for.
type ARMOperation struct {
	// startTime is when the request was sent. It is written before, so that a
	// controller that starts anew knows how much it may ask of ARM.
	StartTime metav1.Time `json:"startTime"`
	// completionTime is when ARM reported its end; absent while it runs.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
	// result is Running, Succeeded, Failed or Unknown.
	Result OperationResult `json:"result"`
	// resumeToken is how the controller, or the next one, asks for the operation
	// while it runs. It is the Azure SDK's, and opaque. While it is absent from a
	// running operation, ARM has not answered the request yet.
	// +optional
	ResumeToken string `json:"resumeToken,omitempty"`
	// message is ARM's own, if it failed.
	// +optional
	Message string `json:"message,omitempty"`
}

// RetryScope is what ARM wants left alone.
type RetryScope string

// The scopes of ARM's limits.
const (
	RetryScopeResource     RetryScope = "Resource"
	RetryScopeSubscription RetryScope = "Subscription"
)

// AzureIdentityAttachmentStatus is what was last seen on the resource.
type AzureIdentityAttachmentStatus struct {
	// observedGeneration is the generation of the spec that the status is of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// present lists the user-assigned identities on the resource, whoever
	// attached them, in lower case.
	// +optional
	// +listType=set
	Present []string `json:"present,omitempty"`

	// pending lists the identities that pods on the resource's nodes need and
	// that are not on it yet.
	// +optional
	// +listType=set
	Pending []string `json:"pending,omitempty"`

	// refused lists the identities that Azure does not let the controller attach.
	// +optional
	// +listType=map
	// +listMapKey=resourceID
	Refused []RefusedIdentity `json:"refused,omitempty"`

	// isolation is the search for identities that Azure refuses without naming
	// them; absent while there is nothing to search.
	// +optional
	Isolation *Isolation `json:"isolation,omitempty"`

	// estranged lists the identities that pods need and for which Azure shows
	// another client ID than the AzureIdentities.
	// +optional
	// +listType=map
	// +listMapKey=resourceID
	Estranged []EstrangedIdentity `json:"estranged,omitempty"`

	// unconfirmed lists the identities that were attached and not yet shown with
	// the client ID that is expected.
	// +optional
	// +listType=map
	// +listMapKey=resourceID
	Unconfirmed []UnconfirmedIdentity `json:"unconfirmed,omitempty"`
	// retryAfter is when ARM wants to be asked again, where it has asked to wait.
	// The next leader keeps it, too.
	// +optional
	RetryAfter *metav1.Time `json:"retryAfter,omitempty"`

	// retryScope is what ARM wants left alone until then, if it has said so: this
	// resource, or everything in its subscription.
	// +optional
	// +kubebuilder:validation:Enum=Resource;Subscription
	RetryScope RetryScope `json:"retryScope,omitempty"`

	// lastOperation is the last change that ARM was asked for.
	// +optional
	LastOperation *ARMOperation `json:"lastOperation,omitempty"`

	// conditions are Synced and Throttled.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzureIdentityAttachment is the record of the identities on one virtual machine
// or scale set. It is written by the controller; people only read it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:resource:path=azureidentityattachments,singular=azureidentityattachment
// +kubebuilder:printcolumn:name="Synced",type=string,JSONPath=`.status.conditions[?(@.type=="Synced")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Synced")].reason`
// +kubebuilder:printcolumn:name="Resource",type=string,JSONPath=`.spec.resourceID`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AzureIdentityAttachment struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec AzureIdentityAttachmentSpec `json:"spec,omitempty"`
	// +optional
	Status AzureIdentityAttachmentStatus `json:"status,omitempty"`
}

// AzureIdentityAttachmentList is a list of AzureIdentityAttachments.
//
// +kubebuilder:object:root=true
type AzureIdentityAttachmentList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureIdentityAttachment `json:"items"`
}
