package tokensource_test

import (
	"context"
	"errors"
	"testing"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// constant always gives a token.
type constant struct{}

func (constant) Token(context.Context, tokensource.Request) (imds.Token, error) {
	return imds.NewToken("t", imds.Token{ExpiresOn: time.Unix(1_700_000_000, 0)}), nil
}

func reasonOf(err error) v1.Reason {
	if err == nil {
		return ""
	}
	return refusal.Of(err).Reason
}

func TestAnIdentityWithoutASourceIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		id   identity.Identity
		want v1.Reason
	}{
		"managed identity":     {identity.Identity{}, ""},
		"service principal":    {identity.Identity{Kind: identity.ServicePrincipal}, ""},
		"certificate":          {identity.Identity{Kind: identity.ServicePrincipalCertificate}, ""},
		"federated":            {identity.Identity{Federated: true}, v1.ReasonUnsupportedIdentityType},
		"a kind of the future": {identity.Identity{Kind: 7}, v1.ReasonUnsupportedIdentityType},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tokensource.Sources{Managed: constant{}, Principal: constant{}}.Token(t.Context(), tokensource.Request{Identity: test.id})
			if reasonOf(err) != test.want {
				t.Errorf("got %v", err)
			}
			_, err = tokensource.Sources{}.Token(t.Context(), tokensource.Request{Identity: test.id})
			if reasonOf(err) != v1.ReasonUnsupportedIdentityType {
				t.Errorf("without a source: %v", err)
			}
		})
	}
}

func TestClasses(t *testing.T) {
	refused := func(err error) error { return &refusal.Error{Reason: v1.ReasonUpstreamRefused, Err: err} }
	for name, test := range map[string]struct {
		err  error
		want tokensource.Class
	}{
		"the identity is not on the node": {refused(&imds.RefusedError{Status: 400, Description: "Identity not found"}), tokensource.NotFound},
		"nobody knows the resource":       {refused(&imds.RefusedError{Status: 400, Description: "AADSTS500011"}), tokensource.BadRequest},
		"the service forbids":             {refused(&imds.RefusedError{Status: 403, Description: "Identity not found"}), tokensource.Forbidden},
		"somebody else refuses":           {refused(errors.New("AADSTS7000215")), tokensource.Forbidden},
		"no Secret":                       {refusal.New(v1.ReasonSecretNotFound, "m"), tokensource.NotFound},
		"a Secret without a credential":   {refusal.New(v1.ReasonInvalidSecret, "m"), tokensource.Forbidden},
		"throttled":                       {refusal.New(v1.ReasonUpstreamThrottled, "m"), tokensource.Throttled},
		"down":                            {refusal.New(v1.ReasonUpstreamUnavailable, "m"), tokensource.Unavailable},
		"being updated":                   {refusal.New(v1.ReasonUpstreamUpdating, "m"), tokensource.Unavailable},
		"a mistake":                       {errors.New("m"), tokensource.Unavailable},
		"no turn":                         {refusal.New(v1.ReasonLimited, "m"), tokensource.Passing},
		"no source":                       {refusal.New(v1.ReasonUnsupportedIdentityType, "m"), tokensource.Passing},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tokensource.ClassOf(test.err); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			if life := test.want.Life(0); life > time.Minute || (life == 0) != (test.want == tokensource.Passing) {
				t.Errorf("remembered for %s", life)
			}
		})
	}
}
