package v1

// Reason says in one word why something is as it is. The set is closed, and the
// same for conditions, Events, HTTP error bodies, metric labels and the audit
// line.
type Reason string

// The reasons of the rule of who may use what.
const (
	// ReasonAssigned: the identity is the pod's to use.
	ReasonAssigned Reason = "Assigned"
	// ReasonValid: the object can be used as it is written.
	ReasonValid Reason = "Valid"
	// ReasonNotSelected: the pod carries no label aadpodidbinding.
	ReasonNotSelected Reason = "NotSelected"
	// ReasonNoBinding: no AzureIdentityBinding has the pod's label as its selector.
	ReasonNoBinding Reason = "NoBinding"
	// ReasonInvalidBinding: the binding contradicts itself or lacks a field.
	ReasonInvalidBinding Reason = "InvalidBinding"
	// ReasonIdentityNotFound: the binding names an AzureIdentity that does not
	// exist in its namespace.
	ReasonIdentityNotFound Reason = "IdentityNotFound"
	// ReasonInvalidIdentity: the AzureIdentity cannot be used as it is written.
	ReasonInvalidIdentity Reason = "InvalidIdentity"
	// ReasonNamespaceMismatch: the identity is for pods of its own namespace.
	ReasonNamespaceMismatch Reason = "NamespaceMismatch"
	// ReasonNameConflict: another identity of the same name, in another
	// namespace, has the pod's one assignment of that name.
	ReasonNameConflict Reason = "NameConflict"
)

// The reasons of the controller.
const (
	// ReasonAttaching: Azure was asked to attach the identity and has not
	// finished.
	ReasonAttaching Reason = "Attaching"
	// ReasonSynced: the resource carries every identity that its pods need.
	ReasonSynced Reason = "Synced"
	// ReasonNodeNotFound: the pod's node does not exist.
	ReasonNodeNotFound Reason = "NodeNotFound"
	// ReasonUnsupportedNode: the node's providerID names no virtual machine or
	// scale set of Azure.
	ReasonUnsupportedNode Reason = "UnsupportedNode"
	// ReasonResourceNotFound: ARM does not know the virtual machine or scale set.
	ReasonResourceNotFound Reason = "ResourceNotFound"
	// ReasonResourceDeleting: the virtual machine or scale set is being deleted.
	ReasonResourceDeleting Reason = "ResourceDeleting"
	// ReasonIdentityRefused: Azure refuses to attach this identity.
	ReasonIdentityRefused Reason = "IdentityRefused"
	// ReasonIdentityRecreated: the identity was deleted and created again under
	// its name, and the resource still carries the former one, which is of no use.
	ReasonIdentityRecreated Reason = "IdentityRecreated"
	// ReasonClientIDMismatch: Azure shows another client ID for the identity than
	// the AzureIdentity has.
	ReasonClientIDMismatch Reason = "ClientIDMismatch"
	// ReasonPermissionDenied: the controller's own identity lacks a role.
	ReasonPermissionDenied Reason = "PermissionDenied"
	// ReasonConflict: somebody else changed the resource at the same time.
	ReasonConflict Reason = "Conflict"
	// ReasonThrottled: Azure asked to wait.
	ReasonThrottled Reason = "Throttled"
	// ReasonOldController: a controller of AAD Pod Identity runs, and must end
	// before this one acts.
	ReasonOldController Reason = "OldController"
	// ReasonReloaded: the controller goes on with a cloud configuration that was
	// replaced while it ran.
	ReasonReloaded Reason = "Reloaded"
	// ReasonInvalidConfiguration: the cloud configuration was replaced by one that
	// cannot be used; the one before is used on.
	ReasonInvalidConfiguration Reason = "InvalidConfiguration"
	// ReasonARMUnavailable: ARM, or the way to it, is down.
	ReasonARMUnavailable Reason = "ARMUnavailable"
)

// The reasons of the agent.
const (
	// ReasonIssued: the pod got the token that it asked for.
	ReasonIssued Reason = "Issued"
	// ReasonException: an AzurePodIdentityException sent the request on to the
	// node's metadata service.
	ReasonException Reason = "Exception"
	// ReasonForwarded: the request, not one for a token, went on to the node's
	// metadata service, as any pod's may.
	ReasonForwarded Reason = "Forwarded"
	// ReasonInvalidRequest: the request is not one that the metadata service
	// would answer.
	ReasonInvalidRequest Reason = "InvalidRequest"
	// ReasonForbiddenHeader: the request carries X-Forwarded-For.
	ReasonForbiddenHeader Reason = "ForbiddenHeader"
	// ReasonNotServed: the path is none that pods are served.
	ReasonNotServed Reason = "NotServed"
	// ReasonCallerUnknown: no pod of this node has the caller's address.
	ReasonCallerUnknown Reason = "CallerUnknown"
	// ReasonCallerAmbiguous: several pods of this node have the caller's address.
	ReasonCallerAmbiguous Reason = "CallerAmbiguous"
	// ReasonCallerMismatch: the caller's address belongs to a pod of this node, and
	// another link of the node than that pod's speaks from it.
	ReasonCallerMismatch Reason = "CallerMismatch"
	// ReasonCallerUnproven: the node's pods share a network segment on which one
	// can take another's address, and nothing shows which one asks.
	ReasonCallerUnproven Reason = "CallerUnproven"
	// ReasonNotAssigned: no assignment for the pod exists yet.
	ReasonNotAssigned Reason = "NotAssigned"
	// ReasonNotAttached: the assignment exists; the identity is not on the node's
	// resource yet.
	ReasonNotAttached Reason = "NotAttached"
	// ReasonNotBound: the identity exists, but no binding gives it to the pod.
	ReasonNotBound Reason = "NotBound"
	// ReasonUnknownIdentity: the identity asked for is none of this cluster.
	ReasonUnknownIdentity Reason = "UnknownIdentity"
	// ReasonUnsupportedIdentityType: the agent has no source for this type of
	// identity.
	ReasonUnsupportedIdentityType Reason = "UnsupportedIdentityType"
	// ReasonUpstreamRefused: the metadata service or Entra refused the request.
	ReasonUpstreamRefused Reason = "UpstreamRefused"
	// ReasonUpstreamThrottled: the metadata service or Entra asked to wait.
	ReasonUpstreamThrottled Reason = "UpstreamThrottled"
	// ReasonUpstreamUpdating: the metadata service is being updated and says when
	// it is back: within 70 seconds.
	ReasonUpstreamUpdating Reason = "UpstreamUpdating"
	// ReasonUpstreamUnavailable: the metadata service or Entra is down.
	ReasonUpstreamUnavailable Reason = "UpstreamUnavailable"
	// ReasonSecretNotFound: the Secret that the identity names does not exist.
	ReasonSecretNotFound Reason = "SecretNotFound"
	// ReasonInvalidSecret: the Secret holds no credential of the identity's type.
	ReasonInvalidSecret Reason = "InvalidSecret"
	// ReasonSecretForbidden: the Secret is one that the agent does not use for
	// this identity: of another namespace, a ServiceAccount's token, or one that
	// it has no right to read.
	ReasonSecretForbidden Reason = "SecretForbidden"
	// ReasonCrossNamespaceSecret: a Secret of another namespace than the
	// identity's was used, because the install allows it.
	ReasonCrossNamespaceSecret Reason = "CrossNamespaceSecret"
	// ReasonUndocumentedKey: the credential stands in the Secret under another
	// key than the documented one.
	ReasonUndocumentedKey Reason = "UndocumentedKey"
	// ReasonAuthorityForbidden: the identity names an authority, or a tenant, to
	// which this install gives no credential.
	ReasonAuthorityForbidden Reason = "AuthorityForbidden"
	// ReasonLimited: the pod, or all pods of the node together, ask for more than
	// they may.
	ReasonLimited Reason = "Limited"
	// ReasonMethodNotAllowed: the path is served, but not for this HTTP method.
	ReasonMethodNotAllowed Reason = "MethodNotAllowed"
	// ReasonBlocked: this install keeps instance metadata from pods.
	ReasonBlocked Reason = "Blocked"
	// ReasonInternalError: the agent made a mistake; its log says which.
	ReasonInternalError Reason = "InternalError"
	// ReasonSeveralIdentities: the pod may use several identities and asked for
	// none in particular.
	ReasonSeveralIdentities Reason = "SeveralIdentities"
	// ReasonNotReady: the agent has not yet read what it needs from the API server,
	// or another part of it does not work.
	ReasonNotReady Reason = "NotReady"
	// ReasonStale: what the agent knows is older than this install allows, because
	// the API server has said nothing for so long.
	ReasonStale Reason = "Stale"
	// ReasonInForce: it is as it should be.
	ReasonInForce Reason = "InForce"
	// ReasonAddressOnly: pods are known by their address alone.
	ReasonAddressOnly Reason = "AddressOnly"
	// ReasonDatapathBypass: pods' packets may go past the rules that lead them to
	// the agent.
	ReasonDatapathBypass Reason = "DatapathBypass"
	// ReasonRulesRemoved: the agent has ended for good and taken its rules from the
	// node.
	ReasonRulesRemoved Reason = "RulesRemoved"
	// ReasonRulesLeft: the agent has ended for good and could not take all of its
	// rules from the node, or could not put all of them there and left some.
	ReasonRulesLeft Reason = "RulesLeft"
	// ReasonNoRules: the agent could not put rules on the node, and none of an agent
	// before it are there.
	ReasonNoRules Reason = "NoRules"
)

// Condition types.
const (
	// ConditionReady on an AzureIdentity, AzureIdentityBinding or
	// AzureAssignedIdentity: it can be used. On an AzureIdentityNodeReport: pods
	// are served.
	ConditionReady = "Ready"
	// ConditionCallersProven on an AzureIdentityNodeReport: the node's links show
	// which pod asks.
	ConditionCallersProven = "CallersProven"
	// ConditionDatapathSeen on an AzureIdentityNodeReport: nothing is known to take
	// pods' packets past the agent's rules.
	ConditionDatapathSeen = "DatapathSeen"
	// ConditionRulesOnNode on an AzureIdentityNodeReport: the node has rules of
	// agents. They outlive an agent that ends, so that False alone says that there is
	// nothing to clean up.
	ConditionRulesOnNode = "RulesOnNode"
	// ConditionAttachable on an AzureIdentity: Azure lets it be attached to the
	// nodes' resources. It is there only while that is in doubt.
	ConditionAttachable = "Attachable"
	// ConditionSynced on an AzureIdentityAttachment: the resource carries what
	// its pods need, and nothing that only MIC attached and nobody needs.
	ConditionSynced = "Synced"
	// ConditionThrottled on an AzureIdentityAttachment: Azure asked to wait.
	ConditionThrottled = "Throttled"
)
