package v1

import (
	"fmt"
	"maps"
)

// ClashError says that one field of an object is set in two spellings that
// differ. It is an error of the object, never a guess.
type ClashError struct {
	// Field is the spelling to keep.
	Field string
	// Legacy is the spelling to remove.
	Legacy string
}

// Error names both spellings and says which one to keep.
func (e *ClashError) Error() string {
	return fmt.Sprintf("%s and %s are both set and differ: keep %s only", e.Field, e.Legacy, e.Field)
}

// Normalized returns the spec with every old spelling folded into its twin, or a
// [*ClashError] where the two differ. The receiver is not changed.
func (s *AzureIdentitySpec) Normalized() (AzureIdentitySpec, error) {
	out := *s.DeepCopy()
	err := foldAll(
		fold{"resourceID", "ResourceID", &out.ResourceID, &out.LegacyResourceID},
		fold{"clientID", "ClientID", &out.ClientID, &out.LegacyClientID},
		fold{"tenantID", "TenantID", &out.TenantID, &out.LegacyTenantID},
	)
	if err != nil {
		return AzureIdentitySpec{}, err
	}
	if out.LegacyClientPassword == nil {
		return out, nil
	}
	ref, err := out.LegacyClientPassword.normalized()
	if err != nil {
		return AzureIdentitySpec{}, fmt.Errorf("reading ClientPassword: %w", err)
	}
	if out.ClientPassword != nil && *out.ClientPassword != ref {
		return AzureIdentitySpec{}, &ClashError{Field: "clientPassword", Legacy: "ClientPassword"}
	}
	out.ClientPassword, out.LegacyClientPassword = &ref, nil
	return out, nil
}

// Normalized returns the spec with every old spelling folded into its twin, or a
// [*ClashError] where the two differ. The receiver is not changed.
func (s *AzureIdentityBindingSpec) Normalized() (AzureIdentityBindingSpec, error) {
	out := *s
	out.Metadata = s.Metadata.DeepCopy()
	err := foldAll(
		fold{"azureIdentity", "AzureIdentity", &out.AzureIdentity, &out.LegacyAzureIdentity},
		fold{"selector", "Selector", &out.Selector, &out.LegacySelector},
	)
	if err != nil {
		return AzureIdentityBindingSpec{}, err
	}
	return out, nil
}

// Normalized returns the spec with the old spelling folded into its twin, or a
// [*ClashError] where the two differ. The receiver is not changed.
func (s *AzurePodIdentityExceptionSpec) Normalized() (AzurePodIdentityExceptionSpec, error) {
	out := *s.DeepCopy()
	if len(out.LegacyPodLabels) == 0 {
		out.LegacyPodLabels = nil
		return out, nil
	}
	if len(out.PodLabels) > 0 && !maps.Equal(out.PodLabels, out.LegacyPodLabels) {
		return AzurePodIdentityExceptionSpec{}, &ClashError{Field: "podLabels", Legacy: "PodLabels"}
	}
	out.PodLabels, out.LegacyPodLabels = out.LegacyPodLabels, nil
	return out, nil
}

func (r *LegacySecretReference) normalized() (SecretReference, error) {
	out := *r
	err := foldAll(
		fold{"name", "Name", &out.Name, &out.LegacyName},
		fold{"namespace", "Namespace", &out.Namespace, &out.LegacyNamespace},
	)
	return SecretReference{Name: out.Name, Namespace: out.Namespace}, err
}

// fold is one field in both spellings.
type fold struct {
	field, legacy string
	value, old    *string
}

func foldAll(folds ...fold) error {
	for _, f := range folds {
		switch {
		case *f.old == "":
		case *f.value == "" || *f.value == *f.old:
			*f.value = *f.old
		default:
			return &ClashError{Field: f.field, Legacy: f.legacy}
		}
		*f.old = ""
	}
	return nil
}
