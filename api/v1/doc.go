// Package v1 holds the Kubernetes API of pod identity, group
// aadpodidentity.k8s.io, version v1: the four kinds that AAD Pod Identity
// v1.8.17 served, unchanged in name, scope and JSON keys, and the kinds added
// since.
//
// It is the contract with the objects in users' clusters, so that an object
// once accepted stays valid. It holds types, their validation markers, the
// reading of legacy spellings and the closed set of [Reason]s; it must not grow
// logic, and it imports apimachinery only.
//
// +kubebuilder:object:generate=true
// +groupName=aadpodidentity.k8s.io
package v1
