// Package tokensource gets tokens for identities: one [Source] for each kind of
// them, the cache in front of all, and the budget of each upstream in between.
//
// Here are the words that they share. The package must not decide who may have a
// token: whoever asks here has been allowed to.
package tokensource

import (
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Request is everything that a token depends on. Requests are one and the same
// exactly if their canonical forms are ==, and only then share a token: what a
// new kind of source depends on must become a field.
type Request struct {
	Identity identity.Identity
	// Resource is the audience as the caller spelled it: to the letter, since
	// Entra gives "https://r" and "https://r/" different ones.
	Resource string
	// Version is the version of the credential that proves the identity, as
	// [Credential] has it; empty for identities that need none.
	Version string
	// Fresh asks upstream for a token that it has not kept. It is no part of the
	// canonical form.
	Fresh bool
}

// Canonical returns the request in the one spelling of all that Azure takes for
// the same: tenants and authorities compare without case, as client and resource
// IDs do, which are folded when they are read.
func (r Request) Canonical() Request {
	r.Fresh = false
	id := &r.Identity
	id.TenantID, id.Authority = strings.ToLower(id.TenantID), strings.ToLower(id.Authority)
	for i, tenant := range id.AuxiliaryTenants {
		id.AuxiliaryTenants[i] = strings.ToLower(tenant)
	}
	return r
}

// Ask is a request and the pod that makes it. Whatever the pod, equal requests
// have one answer.
type Ask struct {
	Request
	Pod identity.Key
	UID types.UID
}

// Credential says which credential an identity has at present, and nothing of
// what is in it.
type Credential struct {
	// Version is another for each credential: a token that was got with an old
	// one is not served when there is a new one.
	Version string
	// Warnings are what the identity's owner should mend.
	Warnings []Warning
}

// Warning is something that works and should not stay so.
type Warning struct {
	Reason  v1.Reason
	Message string
}

// Source gets a token from upstream. What upstream will not or cannot give is a
// [*refusal.Error].
type Source interface {
	Token(ctx context.Context, request Request) (imds.Token, error)
}

// Sources hold a source for each kind of identity; nil where there is none. An
// identity without a source is refused, and never served from another's.
type Sources struct {
	// Managed serves managed identities that are attached to the node.
	Managed Source
	// Principal serves service principals, with a secret or a certificate.
	Principal Source
}

// Token asks the source of the identity's kind.
func (s Sources) Token(ctx context.Context, request Request) (imds.Token, error) {
	if source := s.of(request.Identity); source != nil {
		return source.Token(ctx, request)
	}
	kind := request.Identity.Kind.String()
	if request.Identity.Federated {
		kind = "federated identity"
	}
	return imds.Token{}, refusal.New(v1.ReasonUnsupportedIdentityType,
		"AzureIdentity %s is a %s, which this agent has no source of tokens for", request.Identity.Key, kind)
}

func (s Sources) of(id identity.Identity) Source {
	switch {
	case id.Attached():
		return s.Managed
	case id.Kind == identity.ServicePrincipal || id.Kind == identity.ServicePrincipalCertificate:
		return s.Principal
	}
	return nil
}
