package options

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
)

// Principals are what a user sets of service principals.
type Principals struct {
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

func (o *Principals) addFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.AuthorityHosts, "authority-hosts", o.AuthorityHosts,
		"hosts, or https URLs, of the Entra authorities that credentials may be sent to; the first is for identities without adEndpoint (default "+
			strings.Join(entra.KnownHosts(), ",")+", and that of the file in "+entra.EnvironmentFileVariable+")")
	f.BoolVar(&o.CrossNamespaceSecrets, "allow-cross-namespace-secrets", o.CrossNamespaceSecrets, "let an AzureIdentity use a Secret of another namespace; whoever may write AzureIdentities can then use every Secret")
	f.DurationVar(&o.SecretMaxAge, "secret-max-age", o.SecretMaxAge, "how long a Secret is used before it is read again, and so how long a changed one may be in use")
}

// authorities reads the list, or makes the default one.
func (o *Principals) authorities() (entra.Authorities, error) {
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

func (o *Principals) check() error {
	if o.SecretMaxAge <= 0 || o.SecretMaxAge > maxSecretAge {
		return fmt.Errorf("--secret-max-age is %s: want more than nothing and at most %s", o.SecretMaxAge, maxSecretAge)
	}
	return nil
}
