package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AzurePodIdentityExceptionSpec selects pods by their labels. Read it through
// [AzurePodIdentityExceptionSpec.Normalized].
//
// +kubebuilder:validation:XValidation:rule="!(has(self.PodLabels) && has(self.podLabels)) || self.PodLabels == self.podLabels",message="podLabels and PodLabels are both set and differ: keep podLabels only"
type AzurePodIdentityExceptionSpec struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// podLabels selects every pod of the exception's namespace that carries at
	// least one of these labels: the key exactly, the value in any case.
	// +optional
	PodLabels map[string]string `json:"podLabels,omitempty"`

	// PodLabels is the old spelling of podLabels.
	// +optional
	LegacyPodLabels map[string]string `json:"PodLabels,omitempty"`
}

// AzurePodIdentityExceptionStatus has no meaning.
type AzurePodIdentityExceptionStatus struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// status has no meaning.
	// +optional
	Status string `json:"status,omitempty"`
}

// AzurePodIdentityException sends the requests of the selected pods of its
// namespace on to the node's own metadata service.
//
// +kubebuilder:object:root=true
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:resource:path=azurepodidentityexceptions,singular=azurepodidentityexception
type AzurePodIdentityException struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec AzurePodIdentityExceptionSpec `json:"spec,omitempty"`
	// +optional
	Status AzurePodIdentityExceptionStatus `json:"status,omitempty"`
}

// AzurePodIdentityExceptionList is a list of AzurePodIdentityExceptions.
//
// +kubebuilder:object:root=true
type AzurePodIdentityExceptionList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzurePodIdentityException `json:"items"`
}
