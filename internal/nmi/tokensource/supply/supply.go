// Package supply joins what gets tokens: the sources, the budgets of what they
// ask, and the cache in front of all.
//
// It only wires. It must not decide who may have a token, nor know how a source
// gets one.
package supply

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/credential"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/principal"
)

const (
	// patience is how long a request waits for its turn and its token, before it
	// is told when to come back.
	patience = 5 * time.Second
	// Timeout bounds what it waits for.
	Timeout = 25 * time.Second
)

// Metrics are told how it goes.
type Metrics interface {
	// AskedEntra counts one token request to Entra.
	AskedEntra(code string, took time.Duration)
	// APIFailed counts one failure of something that is asked of the API server.
	APIFailed(operation string)
	// Cached counts one answer of the cache.
	Cached(result string)
	// Waiting shows how many requests wait for an upstream.
	Waiting(upstream string, count func() int)
}

// NewCache puts the cache and the budgets in front of the sources.
func NewCache(sources tokensource.Source, paid Outbound, pods cache.Pods, metrics Metrics) *cache.Cache {
	return cache.New(cache.Options{
		Source: sources, Share: paid.of, Pods: pods, Patience: patience, Timeout: Timeout,
		Observe: func(result cache.Result) { metrics.Cached(string(result)) },
	})
}

// PrincipalOptions configure what gets the tokens of service principals.
type PrincipalOptions struct {
	// Kubernetes is where Secrets are read.
	Kubernetes  *rest.Config
	Authorities entra.Authorities
	UserAgent   string
	// Transport is the way to Entra; nil is the real one.
	Transport http.RoundTripper
	// CrossNamespace lets an identity use a Secret of another namespace, MaxAge
	// is how long a Secret is used before it is read again.
	CrossNamespace bool
	MaxAge         time.Duration
	Metrics        Metrics
}

// NewPrincipals wires the stages of service principals.
func NewPrincipals(o PrincipalOptions) (*principal.Source, error) {
	client, err := kubernetes.NewForConfig(o.Kubernetes)
	if err != nil {
		return nil, fmt.Errorf("making a client for Secrets: %w", err)
	}
	return principal.New(principal.Options{
		Client: entra.NewClient(entra.Options{Authorities: o.Authorities, UserAgent: o.UserAgent, Transport: o.Transport}),
		Credentials: credential.New(credential.Options{
			Reader: secrets{client}, CrossNamespace: o.CrossNamespace, MaxAge: o.MaxAge,
			Failed: func() { o.Metrics.APIFailed("get_secret") },
		}),
		Authorities: o.Authorities, Observe: o.Metrics.AskedEntra,
	}), nil
}

// secrets reads Secrets one by one: the right to list them would be the right to
// all of them at once.
type secrets struct {
	client kubernetes.Interface
}

// Secret gets one Secret.
func (s secrets) Secret(ctx context.Context, key identity.Key) (*corev1.Secret, error) {
	return s.client.CoreV1().Secrets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
}
