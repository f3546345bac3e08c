// Package principal gets the tokens of service principals from Entra, with the
// secret or the certificate that a Secret holds.
//
// It must not keep tokens: that is the cache's in front of it. Which Secret may
// be used is the package credential's to say, and where it may go the package
// entra's.
package principal

import (
	"context"
	"errors"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Client asks Entra; [entra.Client] is one.
type Client interface {
	Token(ctx context.Context, request entra.Request) (imds.Token, error)
}

// Credentials finds the credential of an identity; a credential.Store is one.
type Credentials interface {
	Current(ctx context.Context, id identity.Identity) (tokensource.Credential, error)
	Credential(ctx context.Context, id identity.Identity) (entra.Credential, error)
	// Doubt says that Entra refused the credential.
	Doubt(id identity.Identity)
}

// Options configure a [Source].
type Options struct {
	Client      Client
	Credentials Credentials
	Authorities entra.Authorities
	// Observe is told how each request to Entra went: "ok", "refused",
	// "throttled", "unavailable", or "forbidden" if it was not sent; nil tells
	// nobody.
	Observe func(code string, took time.Duration)
}

// Source is a [tokensource.Source] for service principals. Use [New].
type Source struct {
	options Options
}

var _ tokensource.Source = (*Source)(nil)

// New returns a source.
func New(options Options) *Source {
	if options.Observe == nil {
		options.Observe = func(string, time.Duration) {}
	}
	return &Source{options: options}
}

// place says where the identity's credential would go, if it may.
func (s *Source) place(id identity.Identity) (entra.Authority, error) {
	authority, err := s.options.Authorities.Find(id.Authority)
	if err != nil {
		return entra.Authority{}, explain(id, err)
	}
	if err := entra.CheckTenant(id.TenantID); err != nil {
		return entra.Authority{}, refusal.New(v1.ReasonAuthorityForbidden, "AzureIdentity %s: %v", id.Key, err)
	}
	return authority, nil
}

// Current says which credential the identity has, for the request's Version.
// Every error is a [*refusal.Error].
func (s *Source) Current(ctx context.Context, id identity.Identity) (tokensource.Credential, error) {
	if _, err := s.place(id); err != nil {
		return tokensource.Credential{}, err
	}
	return s.options.Credentials.Current(ctx, id)
}

// Token asks for the identity's token. Where the credential may go is looked at
// before it is touched. Every error is a [*refusal.Error].
func (s *Source) Token(ctx context.Context, request tokensource.Request) (imds.Token, error) {
	id := request.Identity
	authority, err := s.place(id)
	if err != nil {
		return imds.Token{}, err
	}
	credential, err := s.options.Credentials.Credential(ctx, id)
	if err != nil {
		return imds.Token{}, err
	}
	start := time.Now()
	token, err := s.options.Client.Token(ctx, entra.Request{
		Authority: authority, TenantID: id.TenantID, ClientID: id.ClientID.String(), Resource: request.Resource, Credential: credential,
	})
	if err != nil {
		refused := explain(id, err)
		s.options.Observe(codeOf(refused.Reason), time.Since(start))
		if refused.Reason == v1.ReasonUpstreamRefused {
			s.options.Credentials.Doubt(id)
		}
		return imds.Token{}, refused
	}
	s.options.Observe("ok", time.Since(start))
	return token, nil
}

func codeOf(reason v1.Reason) string {
	switch reason {
	case v1.ReasonUpstreamRefused:
		return "refused"
	case v1.ReasonUpstreamThrottled:
		return "throttled"
	case v1.ReasonUpstreamUnavailable:
		return "unavailable"
	}
	return "forbidden"
}

func explain(id identity.Identity, err error) *refusal.Error {
	var (
		forbidden *entra.ForbiddenError
		wrong     *entra.InvalidError
		refused   *entra.RefusedError
		throttled *entra.ThrottledError
	)
	switch {
	case errors.As(err, &forbidden):
		return refusal.New(v1.ReasonAuthorityForbidden, "AzureIdentity %s, adEndpoint: %v (the agent's flag --authority-hosts lists where credentials may go)", id.Key, forbidden)
	case errors.As(err, &wrong):
		return refusal.New(v1.ReasonInvalidRequest, "AzureIdentity %s: %v", id.Key, wrong)
	case errors.As(err, &refused):
		out := refusal.New(v1.ReasonUpstreamRefused, "Entra refuses a token for AzureIdentity %s: %s%s", id.Key, refused.Description, hint(id, refused.Codes))
		out.Err = err
		return out
	case errors.As(err, &throttled):
		return &refusal.Error{Reason: v1.ReasonUpstreamThrottled, After: throttled.After, Err: err, Message: "Entra asks for fewer requests: try again later"}
	}
	return &refusal.Error{Reason: v1.ReasonUpstreamUnavailable, Err: err, Message: "Entra does not answer: try again"}
}

// hint says what to look at, for what users most often meet.
func hint(id identity.Identity, codes []int) string {
	hints := map[int]string{
		7000215: "the client secret in Secret " + id.Credential.String() + " is wrong; it must be the secret's value, not its ID",
		7000222: "the client secret in Secret " + id.Credential.String() + " has expired",
		700027:  "the certificate in Secret " + id.Credential.String() + " is not registered with the application",
		700016:  "the application is not in tenant " + id.TenantID + ", or the clientID is wrong",
		90002:   "tenant " + id.TenantID + " is not known to the cloud of adEndpoint",
		500011:  "the resource has no service principal in tenant " + id.TenantID,
	}
	for _, code := range codes {
		if text, ok := hints[code]; ok {
			return " (hint: " + text + ")"
		}
	}
	if strings.Contains(id.TenantID, ".") {
		return " (hint: give tenantID as a GUID)"
	}
	return ""
}
