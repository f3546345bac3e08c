// Package imds gets the tokens of managed identities from the node's own
// metadata service.
//
// However the pod asked, it asks by client ID, or by resource ID where an
// identity has no other, and never without either. It must not keep tokens: that
// is the cache's in front of it.
package imds

import (
	"context"
	"errors"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	azureimds "github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Client asks the metadata service; [azureimds.Client] is one.
type Client interface {
	Token(ctx context.Context, query azureimds.Query) (azureimds.Token, error)
}

// Source is a [tokensource.Source] for managed identities. Use [New].
type Source struct {
	client  Client
	observe func(code string, took time.Duration)
}

var _ tokensource.Source = (*Source)(nil)

// New returns a source. observe is told how each upstream call went: "ok",
// "refused", "throttled", "updating" or "unavailable"; nil tells nobody.
func New(client Client, observe func(code string, took time.Duration)) *Source {
	if observe == nil {
		observe = func(string, time.Duration) {}
	}
	return &Source{client: client, observe: observe}
}

// Token asks for the identity's token. Every error is a [*refusal.Error].
func (s *Source) Token(ctx context.Context, request tokensource.Request) (azureimds.Token, error) {
	start := time.Now()
	id := request.Identity
	token, err := s.client.Token(ctx, azureimds.Query{
		Resource: request.Resource, ClientID: id.ClientID.String(), ResourceID: id.ResourceID, BypassCache: request.Fresh,
	})
	if err != nil {
		code, refused := explain(request, err)
		s.observe(code, time.Since(start))
		return azureimds.Token{}, refused
	}
	s.observe("ok", time.Since(start))
	return token, nil
}

func explain(request tokensource.Request, err error) (string, *refusal.Error) {
	var (
		refused   *azureimds.RefusedError
		throttled *azureimds.ThrottledError
		updating  *azureimds.UpdatingError
	)
	switch {
	case errors.As(err, &refused):
		out := refusal.New(v1.ReasonUpstreamRefused, "%s", words(request, refused))
		out.Err = err
		return "refused", out
	case errors.As(err, &throttled):
		return "throttled", &refusal.Error{Reason: v1.ReasonUpstreamThrottled, After: throttled.After, Err: err,
			Message: "the node's metadata service asks for fewer requests: try again later"}
	case errors.As(err, &updating):
		return "updating", &refusal.Error{Reason: v1.ReasonUpstreamUpdating, Err: err,
			Message: "the node's metadata service is being updated and back within 70 seconds"}
	}
	return "unavailable", &refusal.Error{Reason: v1.ReasonUpstreamUnavailable, Err: err,
		Message: "the node's metadata service does not answer: try again"}
}

func words(request tokensource.Request, err *azureimds.RefusedError) string {
	if !strings.Contains(err.Description, azureimds.IdentityNotFound) {
		return "the node's metadata service refuses a token for AzureIdentity " + request.Identity.String() + ": " + err.Description
	}
	named, wrong := "client ID "+request.Identity.ClientID.String(), "client ID"
	if request.Identity.ClientID.String() == "" {
		named, wrong = "resource ID "+request.Identity.ResourceID.String(), "resource ID"
	}
	return azureimds.IdentityNotFound + ": AzureIdentity " + request.Identity.String() + " with " + named +
		" is not attached to this node's virtual machine or scale set, or its " + wrong + " is wrong"
}
