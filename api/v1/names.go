package v1

// Names on other objects that carry meaning for pod identity.
const (
	// PodLabel selects a pod for the bindings whose selector equals its value.
	PodLabel = "aadpodidbinding"

	// BehaviorAnnotation on an AzureIdentity, with the value
	// [BehaviorNamespaced], restricts it to pods of its own namespace.
	BehaviorAnnotation = "aadpodidentity.k8s.io/Behavior"

	// BehaviorNamespaced is the only value of [BehaviorAnnotation] that counts,
	// in exactly this case.
	BehaviorNamespaced = "namespaced"

	// NodeNameLabel on an AzureAssignedIdentity holds the pod's node, so that an
	// agent can watch its own node's objects only. It is left out where the
	// node's name is longer than a label value may be (63 characters).
	NodeNameLabel = "nodename"

	// AssignedIdentityFinalizer was set by AAD Pod Identity up to v1.8.17. Ours
	// carry no finalizer; where it is met it is released.
	AssignedIdentityFinalizer = "azureassignedidentity.finalizers.aadpodidentity.k8s.io"

	// DefaultAssignedIdentityNamespace holds the AzureAssignedIdentities of
	// identities that are not namespaced.
	DefaultAssignedIdentityNamespace = "default"
)
