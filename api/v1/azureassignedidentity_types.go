package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The states of an AzureAssignedIdentity in status.status.
const (
	// AssignedIDLegacy is the state of objects older than AAD Pod Identity 1.5,
	// and an old agent reads it as [AssignedIDAssigned].
	AssignedIDLegacy = ""
	// AssignedIDCreated means that the identity is not yet known to be on the
	// node's resource. Every create must carry it.
	AssignedIDCreated = "Created"
	// AssignedIDAssigned means that the node's pods can get tokens for it.
	AssignedIDAssigned = "Assigned"
	// AssignedIDUnassigned means that the old controller is about to delete the
	// object. Such an assignment is never used.
	AssignedIDUnassigned = "Unassigned"
)

// AzureAssignedIdentitySpec says which identity one pod on one node was given.
type AzureAssignedIdentitySpec struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// azureIdentityRef is a copy of the AzureIdentity as it was assigned.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:validation:EmbeddedResource
	// +kubebuilder:pruning:PreserveUnknownFields
	AzureIdentityRef *AzureIdentity `json:"azureIdentityRef,omitempty"`

	// azureBindingRef is a copy of the binding that gave the identity to the pod.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:validation:EmbeddedResource
	// +kubebuilder:pruning:PreserveUnknownFields
	AzureBindingRef *AzureIdentityBinding `json:"azureBindingRef,omitempty"`

	// pod is the name of the pod.
	// +optional
	Pod string `json:"pod,omitempty"`

	// podNamespace is the namespace of the pod.
	// +optional
	PodNamespace string `json:"podNamespace,omitempty"`

	// nodename is the node that the pod is bound to.
	// +optional
	NodeName string `json:"nodename,omitempty"`

	// replicas is kept for old readers and has no meaning.
	// +optional
	// +nullable
	Replicas *int32 `json:"replicas,omitempty"`
}

// AzureAssignedIdentityStatus says how far the assignment is. It is written
// through the main resource, as old controllers and agents do.
type AzureAssignedIdentityStatus struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// status is Created, Assigned or Unassigned; empty means Assigned.
	// +optional
	Status string `json:"status,omitempty"`

	// availableReplicas is 1, for old readers.
	// +optional
	AvailableReplicas int32 `json:"availableReplicas,omitempty"`

	// conditions say what the assignment waits for.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzureAssignedIdentity is one identity given to one pod. It is written by the
// controller and read by the agent on the pod's node; people only read it.
//
// +kubebuilder:object:root=true
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:resource:path=azureassignedidentities,singular=azureassignedidentity
type AzureAssignedIdentity struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec AzureAssignedIdentitySpec `json:"spec,omitempty"`
	// +optional
	Status AzureAssignedIdentityStatus `json:"status,omitempty"`
}

// AzureAssignedIdentityList is a list of AzureAssignedIdentities.
//
// +kubebuilder:object:root=true
type AzureAssignedIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureAssignedIdentity `json:"items"`
}
