package state

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

type vault struct {
	name     string // in lower case, as in its host name
	spelling string
	secrets  map[string][]SecretVersion // by name in lower case, oldest first
}

// SecretVersion is one version of a secret.
type SecretVersion struct {
	Name, Version string
	Value         model.Secret
	ContentType   string
	Created       time.Time
}

func (t *tables) addVault(m model.Vault, now time.Time) error {
	id, err := armid.Parse(m.ID)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if id.Type() != vaultType {
		return invalid("%s is not a key vault: want …/providers/Microsoft.KeyVault/vaults/NAME", m.ID)
	}
	if !validVaultName(id.Name()) {
		return invalid("vault name %q: 3 to 24 letters, digits and hyphens", id.Name())
	}
	if _, ok := t.vaults[id.Name()]; ok {
		return invalid("vault %q is there already: its name is unique in all of Azure", id.Name())
	}
	v := &vault{name: id.Name(), spelling: strings.TrimSuffix(m.ID, "/"), secrets: map[string][]SecretVersion{}}
	for _, secret := range m.Secrets {
		if _, err := v.put(secret, now); err != nil {
			return err
		}
	}
	t.vaults[v.name] = v
	return nil
}

// validVaultName keeps to what can be a host name's first label.
func validVaultName(name string) bool {
	return len(name) >= 3 && len(name) <= 24 && validSecretName(name)
}

// validSecretName holds Key Vault's rule: letters, digits and hyphens.
func validSecretName(name string) bool {
	return name != "" && len(name) <= 127 && strings.IndexFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}) < 0
}

func (v *vault) put(m model.VaultSecret, now time.Time) (SecretVersion, error) {
	if !validSecretName(m.Name) {
		return SecretVersion{}, invalid("secret name %q: up to 127 letters, digits and hyphens", m.Name)
	}
	version := SecretVersion{
		Name: m.Name, Version: strings.ReplaceAll(uuid.NewString(), "-", ""),
		Value: m.Value, ContentType: m.ContentType, Created: now,
	}
	key := strings.ToLower(m.Name)
	v.secrets[key] = append(v.secrets[key], version)
	return version, nil
}

func (v *vault) model() model.Vault {
	m := model.Vault{ID: v.spelling}
	for _, versions := range sorted(v.secrets, func(s []SecretVersion) string { return s[0].Name }) {
		latest := versions[len(versions)-1]
		m.Secrets = append(m.Secrets, model.VaultSecret{Name: latest.Name, ContentType: latest.ContentType, Version: latest.Version})
	}
	return m
}

// PutSecret writes a new version of a secret and returns it, its value blanked.
// The error wraps [ErrNotFound] or [ErrInvalid].
func (s *State) PutSecret(vaultName string, m model.VaultSecret) (model.VaultSecret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.t.vaults[strings.ToLower(vaultName)]
	if !ok {
		return model.VaultSecret{}, fmt.Errorf("%w: vault %s", ErrNotFound, vaultName)
	}
	version, err := v.put(m, s.now())
	if err != nil {
		return model.VaultSecret{}, err
	}
	return model.VaultSecret{Name: version.Name, ContentType: version.ContentType, Version: version.Version}, nil
}

// VaultID returns the ARM ID of the vault of that name, as it was created.
func (s *State) VaultID(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.t.vaults[strings.ToLower(name)]
	if !ok {
		return "", false
	}
	return v.spelling, true
}

// Secret returns a version of a secret, the latest if version is empty. The
// error wraps [ErrNotFound].
func (s *State) Secret(vaultName, name, version string) (SecretVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.t.vaults[strings.ToLower(vaultName)]; ok {
		versions := v.secrets[strings.ToLower(name)]
		for _, candidate := range slices.Backward(versions) {
			if version == "" || candidate.Version == version {
				return candidate, nil
			}
		}
	}
	return SecretVersion{}, fmt.Errorf("%w: secret %s", ErrNotFound, name)
}
