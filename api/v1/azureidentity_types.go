package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IdentityType says what kind of principal an AzureIdentity names. An absent
// type is [UserAssignedManagedIdentity].
type IdentityType int

// The types of identities, by the numbers that manifests use.
const (
	// UserAssignedManagedIdentity is a user-assigned managed identity.
	UserAssignedManagedIdentity IdentityType = 0
	// ServicePrincipal is a service principal with a client secret.
	ServicePrincipal IdentityType = 1
	// ServicePrincipalCertificate is a service principal with a certificate.
	ServicePrincipalCertificate IdentityType = 2
)

// AzureIdentitySpec says which principal of Microsoft Entra ID this is.
//
// The fields at the end, spelled with capitals, are what the oldest tutorials
// print; read the spec through [AzureIdentitySpec.Normalized], which folds them
// into their twins.
//
// The rules stand here and not at their fields, so that an edit of the spec of
// an object that an older API let in must mend all of it, while edits of its
// metadata and status pass (KEP-4008, CRD validation ratcheting).
//
// +kubebuilder:validation:XValidation:rule="!has(self.resourceID) || !self.resourceID.matches('[<{]|/[.][.][.]')",fieldPath=".resourceID",message="resourceID still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.ResourceID) || !self.ResourceID.matches('[<{]|/[.][.][.]')",fieldPath=".ResourceID",message="ResourceID still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.clientID) || !self.clientID.matches('[<{]|/[.][.][.]')",fieldPath=".clientID",message="clientID still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.ClientID) || !self.ClientID.matches('[<{]|/[.][.][.]')",fieldPath=".ClientID",message="ClientID still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.tenantID) || !self.tenantID.matches('[<{]|/[.][.][.]')",fieldPath=".tenantID",message="tenantID still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.TenantID) || !self.TenantID.matches('[<{]|/[.][.][.]')",fieldPath=".TenantID",message="TenantID still holds a placeholder of a tutorial (<…>, {…} or ...): put the real value in its place"
// +kubebuilder:validation:XValidation:rule="!has(self.resourceID) || size(self.resourceID) == 0 || self.resourceID.matches('(?i)^/subscriptions/[-a-z0-9._()]+/resourcegroups/[-a-z0-9._()]+/providers/microsoft[.]managedidentity/userassignedidentities/[-a-z0-9._()]+/?$')",fieldPath=".resourceID",message="resourceID must read /subscriptions/<subscription>/resourceGroups/<group>/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name>"
// +kubebuilder:validation:XValidation:rule="!has(self.ResourceID) || size(self.ResourceID) == 0 || self.ResourceID.matches('(?i)^/subscriptions/[-a-z0-9._()]+/resourcegroups/[-a-z0-9._()]+/providers/microsoft[.]managedidentity/userassignedidentities/[-a-z0-9._()]+/?$')",fieldPath=".ResourceID",message="ResourceID must read /subscriptions/<subscription>/resourceGroups/<group>/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name>"
// +kubebuilder:validation:XValidation:rule="!has(self.type) || self.type in [0, 1, 2]",fieldPath=".type",message="type must be 0 (user-assigned managed identity), 1 (service principal, secret) or 2 (service principal, certificate)"
// +kubebuilder:validation:XValidation:rule="!has(self.auxiliaryTenantIDs) || size(self.auxiliaryTenantIDs) <= 3",fieldPath=".auxiliaryTenantIDs",message="auxiliaryTenantIDs holds at most 3 tenants"
// +kubebuilder:validation:XValidation:rule="!(has(self.ResourceID) && has(self.resourceID)) || self.ResourceID == self.resourceID",message="resourceID and ResourceID are both set and differ: keep resourceID only"
// +kubebuilder:validation:XValidation:rule="!(has(self.ClientID) && has(self.clientID)) || self.ClientID == self.clientID",message="clientID and ClientID are both set and differ: keep clientID only"
// +kubebuilder:validation:XValidation:rule="!(has(self.TenantID) && has(self.tenantID)) || self.TenantID == self.tenantID",message="tenantID and TenantID are both set and differ: keep tenantID only"
// +kubebuilder:validation:XValidation:rule="!(has(self.ClientPassword) && has(self.clientPassword))",message="clientPassword and ClientPassword are both set: keep clientPassword only"
// +kubebuilder:validation:XValidation:rule="(has(self.type) && self.type != 0) || has(self.federation) || (has(self.resourceID) && size(self.resourceID) > 0) || (has(self.ResourceID) && size(self.ResourceID) > 0)",message="resourceID is required for type 0 (user-assigned managed identity): give the output of az identity show --query id"
// +kubebuilder:validation:XValidation:rule="(has(self.clientID) && size(self.clientID) > 0) || (has(self.ClientID) && size(self.ClientID) > 0)",message="clientID is required: without it a request would be answered with the node's default identity"
// +kubebuilder:validation:XValidation:rule="!has(self.type) || self.type == 0 || (has(self.tenantID) && size(self.tenantID) > 0) || (has(self.TenantID) && size(self.TenantID) > 0)",message="tenantID is required for types 1 and 2 (service principals)"
// +kubebuilder:validation:XValidation:rule="!has(self.type) || self.type == 0 || has(self.clientPassword) || has(self.ClientPassword)",message="clientPassword is required for types 1 and 2 (service principals): name the Secret that holds the credential"
// +kubebuilder:validation:XValidation:rule="!has(self.federation) || !has(self.type) || self.type == 0",message="federation goes with type 0 only: a federated identity has no secret or certificate"
type AzureIdentitySpec struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// type is 0 for a user-assigned managed identity (also when absent), 1 for a
	// service principal with a client secret, 2 for one with a certificate.
	// +optional
	Type IdentityType `json:"type,omitempty"`

	// resourceID is the ARM ID of the user-assigned managed identity, in any
	// case: /subscriptions/…/resourceGroups/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	ResourceID string `json:"resourceID,omitempty"`

	// clientID is the client (application) ID of the identity, a GUID.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	ClientID string `json:"clientID,omitempty"`

	// clientPassword names the Secret with the credential of a service
	// principal: key clientSecret for type 1; keys certificate (PFX) and
	// password for type 2.
	// +optional
	ClientPassword *SecretReference `json:"clientPassword,omitempty"`

	// tenantID is the Entra tenant of the service principal.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	TenantID string `json:"tenantID,omitempty"`

	// auxiliaryTenantIDs are up to three further tenants that a service
	// principal with a secret gets a token of.
	// +optional
	// +nullable
	// +kubebuilder:validation:MaxItems=100
	AuxiliaryTenantIDs []string `json:"auxiliaryTenantIDs,omitempty"`

	// adResourceID is kept for old manifests and has no effect.
	// +optional
	ADResourceID string `json:"adResourceID,omitempty"`

	// adEndpoint is the Entra authority, https only; empty for the cloud's own.
	// +optional
	ADEndpoint string `json:"adEndpoint,omitempty"`

	// replicas is kept for old manifests and has no effect.
	// +optional
	// +nullable
	Replicas *int32 `json:"replicas,omitempty"`

	// federation makes the identity a federated one: its tokens come from Entra
	// in exchange for a token of the pod's ServiceAccount, and nothing is
	// attached to a node.
	// +optional
	Federation *Federation `json:"federation,omitempty"`

	// ResourceID is the old spelling of resourceID.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	LegacyResourceID string `json:"ResourceID,omitempty"`

	// ClientID is the old spelling of clientID.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	LegacyClientID string `json:"ClientID,omitempty"`

	// ClientPassword is the old spelling of clientPassword.
	// +optional
	LegacyClientPassword *LegacySecretReference `json:"ClientPassword,omitempty"`

	// TenantID is the old spelling of tenantID.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	LegacyTenantID string `json:"TenantID,omitempty"`
}

// SecretReference names a Secret. The namespace must be given: it does not
// default to the referrer's.
type SecretReference struct {
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// Federation says how a federated identity proves a pod to Entra.
type Federation struct {
	// audience of the federated identity credential; empty for the cloud's
	// default, which is api://AzureADTokenExchange in the public cloud.
	// +optional
	Audience string `json:"audience,omitempty"`
}

// LegacySecretReference is a Secret reference as the oldest tutorials spell it,
// with capitals, or as the API does.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.Name) && has(self.name)) || self.Name == self.name",message="name and Name are both set and differ: keep name only"
// +kubebuilder:validation:XValidation:rule="!(has(self.Namespace) && has(self.namespace)) || self.Namespace == self.namespace",message="namespace and Namespace are both set and differ: keep namespace only"
type LegacySecretReference struct {
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	LegacyName string `json:"Name,omitempty"`
	// +optional
	LegacyNamespace string `json:"Namespace,omitempty"`
}

// AzureIdentityStatus is what the controllers observed of an AzureIdentity.
type AzureIdentityStatus struct {
	// metadata has no meaning; old writers left an empty one.
	// +optional
	Metadata *metav1.ObjectMeta `json:"metadata,omitempty"`

	// availableReplicas is kept for old readers and has no meaning.
	// +optional
	AvailableReplicas int32 `json:"availableReplicas,omitempty"`

	// conditions say whether the identity can be used, and if not, why.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzureIdentity names a principal of Microsoft Entra ID that pods may be bound to.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:resource:path=azureidentities,singular=azureidentity
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="ClientID",type=string,JSONPath=`.spec.clientID`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AzureIdentity struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec AzureIdentitySpec `json:"spec,omitempty"`
	// +optional
	Status AzureIdentityStatus `json:"status,omitempty"`
}

// Namespaced reports whether the identity asks to be used by pods of its own
// namespace only.
func (i *AzureIdentity) Namespaced() bool {
	return i.Annotations[BehaviorAnnotation] == BehaviorNamespaced || i.Spec.Federation != nil
}

// AzureIdentityList is a list of AzureIdentities.
//
// +kubebuilder:object:root=true
type AzureIdentityList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureIdentity `json:"items"`
}
