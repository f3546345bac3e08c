package entra

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// Credential proves a service principal: a [Secret] or a [Certificate]. It
// prints as "[redacted]".
type Credential interface {
	sdk(r Request, options policy.ClientOptions) (azcore.TokenCredential, error)
}

const redacted = "[redacted]"

// hidden prints as "[redacted]" with every verb, in logs and in documents.
type hidden struct{}

// Format prints "[redacted]", whatever the verb.
func (hidden) Format(state fmt.State, _ rune) {
	_, _ = io.WriteString(state, redacted) // a fmt.State has nowhere to report an error to
}

// String returns "[redacted]".
func (hidden) String() string { return redacted }

// LogValue returns "[redacted]".
func (hidden) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText writes "[redacted]".
func (hidden) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Secret is a client secret.
type Secret struct {
	hidden
	value string
}

// NewSecret returns the secret.
func NewSecret(value string) Secret { return Secret{value: value} }

func (s Secret) sdk(r Request, options policy.ClientOptions) (azcore.TokenCredential, error) {
	return azidentity.NewClientSecretCredential(r.TenantID, r.ClientID, s.value, &azidentity.ClientSecretCredentialOptions{
		ClientOptions: options,
		// The authority is one of the install's own list; asking Entra in the
		// public cloud whether it is known would fail in the others.
		DisableInstanceDiscovery: true,
	})
}

func (c Certificate) sdk(r Request, options policy.ClientOptions) (azcore.TokenCredential, error) {
	return azidentity.NewClientCertificateCredential(r.TenantID, r.ClientID, c.chain, c.key, &azidentity.ClientCertificateCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: true,
		// The chain is for applications that trust a subject and issuer, and does
		// others no harm.
		SendCertificateChain: true,
	})
}
