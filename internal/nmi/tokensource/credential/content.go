package credential

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// The documented keys of a Secret.
const (
	keyClientSecret = "clientSecret"
	keyCertificate  = "certificate"
	keyPassword     = "password"
)

// read takes the credential out of a Secret. Every error is a [*refusal.Error]
// and holds nothing of the content.
//
//	type  key           what is taken
//	1     clientSecret  its value
//	      one other     its value, with a warning, of an Opaque Secret that lies
//	                    beside its identity: the old agent took any key
//	      several       refused: the old agent took one of them at random
//	2     certificate   PFX or PEM, opened with the key password if it is there
func read(id identity.Identity, secret *corev1.Secret, now time.Time) (entra.Credential, []tokensource.Warning, error) {
	if err := checkType(id, secret); err != nil {
		return nil, nil, err
	}
	if id.Kind == identity.ServicePrincipalCertificate {
		certificate, err := readCertificate(id, secret, now)
		return certificate, nil, err
	}
	value, warnings, err := readSecret(id, secret)
	return value, warnings, err
}

// checkType keeps away from Secrets that are the cluster's own credentials.
func checkType(id identity.Identity, secret *corev1.Secret) error {
	switch secret.Type {
	case corev1.SecretTypeServiceAccountToken, corev1.SecretTypeBootstrapToken:
		return refusal.New(v1.ReasonSecretForbidden,
			"Secret %s is of type %s: it proves somebody to this cluster, and is never sent to Entra", id.Credential, secret.Type)
	}
	return nil
}

func invalid(id identity.Identity, format string, args ...any) error {
	return refusal.New(v1.ReasonInvalidSecret, "Secret %s: %s", id.Credential, fmt.Sprintf(format, args...))
}

func readSecret(id identity.Identity, secret *corev1.Secret) (entra.Secret, []tokensource.Warning, error) {
	value, ok := secret.Data[keyClientSecret]
	var warnings []tokensource.Warning
	if !ok {
		key, err := otherKey(id, secret)
		if err != nil {
			return entra.Secret{}, nil, err
		}
		value = secret.Data[key]
		warnings = []tokensource.Warning{{Reason: v1.ReasonUndocumentedKey, Message: fmt.Sprintf(
			"Secret %s holds the client secret under the key %q: rename it to %s", id.Credential, key, keyClientSecret)}}
	}
	switch text := string(value); {
	case text == "":
		return entra.Secret{}, nil, invalid(id, "the client secret is empty")
	case strings.TrimSpace(text) != text:
		return entra.Secret{}, nil, invalid(id, "the client secret begins or ends with white space, which no secret of Entra does: write it without a line break, as by echo -n")
	default:
		return entra.NewSecret(text), warnings, nil
	}
}

// otherKey returns the only key of a Secret without the documented one.
func otherKey(id identity.Identity, secret *corev1.Secret) (string, error) {
	keys := slices.Sorted(maps.Keys(secret.Data))
	opaque := secret.Type == "" || secret.Type == corev1.SecretTypeOpaque
	switch {
	case len(keys) == 0:
		return "", invalid(id, "it is empty: put the client secret under the key %s", keyClientSecret)
	case len(keys) > 1:
		return "", invalid(id, "it has no key %s, but %d others, of which none can be chosen: name the one with the client secret so", keyClientSecret, len(keys))
	case !opaque || id.Credential.Namespace != id.Namespace:
		return "", invalid(id, "it has no key %s; another key is taken from an Opaque Secret in the identity's own namespace only", keyClientSecret)
	}
	return keys[0], nil
}

func readCertificate(id identity.Identity, secret *corev1.Secret, now time.Time) (entra.Certificate, error) {
	content := secret.Data[keyCertificate]
	if len(content) == 0 {
		return entra.Certificate{}, invalid(id, "it has no key %s, which must hold a PFX, or PEM with the certificate and its key", keyCertificate)
	}
	certificate, err := entra.ParseCertificate(content, string(secret.Data[keyPassword]), now)
	if err != nil {
		return entra.Certificate{}, invalid(id, "%v", err)
	}
	return certificate, nil
}
