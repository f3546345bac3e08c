package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AzureIdentityBindingSpec gives the pods with one value of the label
// [PodLabel] the use of one AzureIdentity. Read it through
// [AzureIdentityBindingSpec.Normalized].
//
// +kubebuilder:validation:XValidation:rule="!has(self.azureIdentity) || !self.azureIdentity.matches('[<{]|/[.][.][.]')",fieldPath=".azureIdentity",message="azureIdentity still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.AzureIdentity) || !self.AzureIdentity.matches('[<{]|/[.][.][.]')",fieldPath=".AzureIdentity",message="AzureIdentity still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.selector) || !self.selector.matches('[<{]|/[.][.][.]')",fieldPath=".selector",message="selector still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.Selector) || !self.Selector.matches('[<{]|/[.][.][.]')",fieldPath=".Selector",message="Selector still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!(has(self.AzureIdentity) && has(self.azureIdentity)) || self.AzureIdentity == self.azureIdentity",message="azureIdentity and AzureIdentity are both set and differ: keep azureIdentity only"
// +kubebuilder:validation:XValidation:rule="!(has(self.Selector) && has(self.selector)) || self.Selector == self.selector",message="selector and Selector are both set and differ: keep selector only"
// +kubebuilder:validation:XValidation:rule="(has(self.azureIdentity) && size(self.azureIdentity) > 0) || (has(self.AzureIdentity) && size(self.AzureIdentity) > 0)",message="azureIdentity is required: the name of an AzureIdentity in the binding's namespace"
// +kubebuilder:validation:XValidation:rule="(has(self.selector) && size(self.selector) > 0) || (has(self.Selector) && size(self.Selector) > 0)",message="selector is required: the value of the pods' label aadpodidbinding"
type AzureIdentityBindingSpec struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// azureIdentity is the name of an AzureIdentity in the binding's own namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	AzureIdentity string `json:"azureIdentity,omitempty"`

	// selector is compared with the value of the pod label aadpodidbinding:
	// exactly, and with no meaning of its own for any value.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Selector string `json:"selector,omitempty"`

	// weight is kept for old manifests and has no effect.
	// +optional
	Weight int `json:"weight,omitempty"`

	// AzureIdentity is the old spelling of azureIdentity.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	LegacyAzureIdentity string `json:"AzureIdentity,omitempty"`

	// Selector is the old spelling of selector.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	LegacySelector string `json:"Selector,omitempty"`
}

// AzureIdentityBindingStatus is what the controllers observed of a binding.
type AzureIdentityBindingStatus struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// availableReplicas is kept for old readers and has no meaning.
	// +optional
	AvailableReplicas int32 `json:"availableReplicas,omitempty"`

	// conditions say whether the binding has effect, and if not, why.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzureIdentityBinding lets the pods that carry the selector's value in the
// label aadpodidbinding use an AzureIdentity.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:resource:path=azureidentitybindings,singular=azureidentitybinding
// +kubebuilder:printcolumn:name="AzureIdentity",type=string,JSONPath=`.spec.azureIdentity`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AzureIdentityBinding struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec AzureIdentityBindingSpec `json:"spec,omitempty"`
	// +optional
	Status AzureIdentityBindingStatus `json:"status,omitempty"`
}

// AzureIdentityBindingList is a list of AzureIdentityBindings.
//
// +kubebuilder:object:root=true
type AzureIdentityBindingList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureIdentityBinding `json:"items"`
}
