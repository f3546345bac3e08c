package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CallerProof is what ties the address of a request to a pod.
//
// +kubebuilder:validation:Enum=link;bridge-port;ip-only
type CallerProof string

// AzureIdentityNodeReportStatus is how the agent of one node is, as that agent
// says.
type AzureIdentityNodeReportStatus struct {
	// version is the agent's.
	// +optional
	Version string `json:"version,omitempty"`
	// mode is standard or managed.
	// +optional
	Mode string `json:"mode,omitempty"`
	// pod is the name of the agent's own pod, if it knows it.
	// +optional
	Pod string `json:"pod,omitempty"`
	// target is the address and port that pods' requests are led to.
	// +optional
	Target string `json:"target,omitempty"`

	// callerProof is what ties a request to its pod, for the pod of the node for
	// which there is least: link, each pod has a link of its own; bridge-port, each
	// has a port of its own on a bridge; ip-only, nothing but the address. Absent
	// while the node has no pods.
	// +optional
	CallerProof CallerProof `json:"callerProof,omitempty"`
	// rulesInPlace says that the rules that lead pods' requests to the agent were
	// read back and are as they should be.
	// +optional
	RulesInPlace bool `json:"rulesInPlace,omitempty"`
	// ready says that pods are served.
	// +optional
	Ready bool `json:"ready,omitempty"`
	// lastProbe is when a packet of the agent's own last came to it as a pod's
	// would, at the time that this report was written.
	// +optional
	LastProbe *metav1.Time `json:"lastProbe,omitempty"`

	// conditions are Ready, CallersProven, DatapathSeen and RulesOnNode.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AzureIdentityNodeReport says how the agent of the node of its name is. It is
// written by that agent only, when something changes; people and tools only read
// it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="api-approved.kubernetes.io=unapproved"
// +kubebuilder:resource:path=azureidentitynodereports,singular=azureidentitynodereport
// +kubebuilder:printcolumn:name="Ready",type=boolean,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Proof",type=string,JSONPath=`.status.callerProof`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.status.mode`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.conditions[?(@.status=="False")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AzureIdentityNodeReport struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status AzureIdentityNodeReportStatus `json:"status,omitempty"`
}

// AzureIdentityNodeReportList is a list of AzureIdentityNodeReports.
//
// +kubebuilder:object:root=true
type AzureIdentityNodeReportList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AzureIdentityNodeReport `json:"items"`
}
