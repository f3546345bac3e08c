package nmi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/credential"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/principal"
)

// PrincipalOptions are what a user sets of service principals.
type PrincipalOptions struct {
	// AuthorityHosts are where credentials may go, the default first; empty is
	// the known clouds' and the custom one's.
	AuthorityHosts []string
	// CrossNamespaceSecrets lets an identity use a Secret of another namespace.
	CrossNamespaceSecrets bool
	// SecretMaxAge is how long a Secret is used before it is read again.
	SecretMaxAge time.Duration
	// EnvironmentFile describes a cloud of one's own; empty if there is none.
	EnvironmentFile string
}

// maxSecretAge bounds how long a revoked secret can stay in use.
const maxSecretAge = time.Hour

func (o *PrincipalOptions) addFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.AuthorityHosts, "authority-hosts", o.AuthorityHosts,
		"hosts, or https URLs, of the Entra authorities that credentials may be sent to; the first is for identities without adEndpoint (default "+
			strings.Join(entra.KnownHosts(), ",")+", and that of the file in "+entra.EnvironmentFileVariable+")")
	f.BoolVar(&o.CrossNamespaceSecrets, "allow-cross-namespace-secrets", o.CrossNamespaceSecrets, "let an AzureIdentity use a Secret of another namespace; whoever may write AzureIdentities can then use every Secret")
	f.DurationVar(&o.SecretMaxAge, "secret-max-age", o.SecretMaxAge, "how long a Secret is used before it is read again, and so how long a changed one may be in use")
}

// authorities reads the list, or makes the default one.
func (o *PrincipalOptions) authorities() (entra.Authorities, error) {
	hosts := o.AuthorityHosts
	if len(hosts) == 0 {
		hosts = entra.KnownHosts()
		if o.EnvironmentFile != "" {
			own, err := entra.ReadEnvironment(o.EnvironmentFile)
			if err != nil {
				return entra.Authorities{}, fmt.Errorf("%s: %w", entra.EnvironmentFileVariable, err)
			}
			hosts = append(hosts, own)
		}
	}
	out, err := entra.ParseAuthorities(hosts)
	if err != nil {
		return entra.Authorities{}, fmt.Errorf("reading --authority-hosts: %w", err)
	}
	return out, nil
}

func (o *PrincipalOptions) check() error {
	if o.SecretMaxAge <= 0 || o.SecretMaxAge > maxSecretAge {
		return fmt.Errorf("--secret-max-age is %s: want more than nothing and at most %s", o.SecretMaxAge, maxSecretAge)
	}
	return nil
}

// checkListed refuses names that --allowed-metadata cannot hold.
func checkListed(names []string) error {
	for _, name := range names {
		if !slices.Contains(server.Listable(), name) {
			return fmt.Errorf("--allowed-metadata holds %q: want some of %s", name, strings.Join(server.Listable(), ", "))
		}
	}
	return nil
}

// newPrincipals wires the stages of service principals.
func (r *runner) newPrincipals() (*principal.Source, error) {
	client, err := kubernetes.NewForConfig(r.rest)
	if err != nil {
		return nil, fmt.Errorf("making a client for Secrets: %w", err)
	}
	return principal.New(principal.Options{
		Client: entra.NewClient(entra.Options{Authorities: r.config.authorities, UserAgent: r.options.userAgent(), Transport: r.options.entra}),
		Credentials: credential.New(credential.Options{
			Reader: secrets{client}, CrossNamespace: r.options.Principals.CrossNamespaceSecrets, MaxAge: r.options.Principals.SecretMaxAge,
			Failed: func() { r.metrics.APIFailed("get_secret") },
		}),
		Authorities: r.config.authorities, Observe: r.metrics.AskedEntra,
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
