package state

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// accountType is the resource type of a storage account, folded.
const accountType = "microsoft.storage/storageaccounts"

// account is a storage account. It never changes once it is there.
type account struct {
	name       string // in lower case, as in its host name
	spelling   string
	containers map[string][]Blob // each sorted by name
}

// Blob is a block blob.
type Blob struct {
	Name, Content string
	Modified      time.Time
}

func (t *tables) addAccount(m model.StorageAccount, now time.Time) error {
	id, err := armid.Parse(m.ID)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if id.Type() != accountType {
		return invalid("%s is not a storage account: want …/providers/Microsoft.Storage/storageAccounts/NAME", m.ID)
	}
	if !validAccountName(id.Name()) {
		return invalid("storage account name %q: 3 to 24 letters and digits", id.Name())
	}
	if _, ok := t.accounts[id.Name()]; ok {
		return invalid("storage account %q is there already: its name is unique in all of Azure", id.Name())
	}
	a := &account{name: id.Name(), spelling: strings.TrimSuffix(m.ID, "/"), containers: map[string][]Blob{}}
	for _, container := range m.Containers {
		if err := a.add(container, now); err != nil {
			return err
		}
	}
	t.accounts[a.name] = a
	return nil
}

func (a *account) add(m model.Container, now time.Time) error {
	if !validContainerName(m.Name) {
		return invalid("container name %q: 3 to 63 lower-case letters, digits and single hyphens, with a letter or digit at both ends", m.Name)
	}
	if _, ok := a.containers[m.Name]; ok {
		return invalid("container %q is there already", m.Name)
	}
	blobs := make([]Blob, 0, len(m.Blobs))
	for _, b := range m.Blobs {
		if b.Name == "" || len(b.Name) > 1024 {
			return invalid("blob name %q in container %q: 1 to 1024 characters", b.Name, m.Name)
		}
		blobs = append(blobs, Blob{Name: b.Name, Content: b.Content, Modified: now})
	}
	slices.SortFunc(blobs, func(a, b Blob) int { return cmp.Compare(a.Name, b.Name) })
	for i, b := range blobs[min(1, len(blobs)):] {
		if blobs[i].Name == b.Name {
			return invalid("blob %q is in container %q twice", b.Name, m.Name)
		}
	}
	a.containers[m.Name] = blobs
	return nil
}

func validAccountName(name string) bool {
	return len(name) >= 3 && len(name) <= 24 && strings.IndexFunc(name, notAlphanumeric) < 0
}

func validContainerName(name string) bool {
	return len(name) >= 3 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-' && !strings.Contains(name, "--") &&
		strings.IndexFunc(name, func(r rune) bool { return r != '-' && notAlphanumeric(r) }) < 0
}

func notAlphanumeric(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }

func (a *account) model() model.StorageAccount {
	m := model.StorageAccount{ID: a.spelling}
	for name, blobs := range a.containers {
		container := model.Container{Name: name}
		for _, b := range blobs {
			container.Blobs = append(container.Blobs, model.Blob{Name: b.Name, Content: b.Content})
		}
		m.Containers = append(m.Containers, container)
	}
	slices.SortFunc(m.Containers, func(a, b model.Container) int { return cmp.Compare(a.Name, b.Name) })
	return m
}

// StorageAccountID returns the ARM ID of the storage account of that name, as it
// was created.
func (s *State) StorageAccountID(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.t.accounts[strings.ToLower(name)]
	if !ok {
		return "", false
	}
	return a.spelling, true
}

// Blobs returns the blobs of a container, sorted by name. The error wraps
// [ErrNotFound].
func (s *State) Blobs(accountName, container string) ([]Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.t.accounts[strings.ToLower(accountName)]; ok {
		if blobs, ok := a.containers[container]; ok {
			return slices.Clone(blobs), nil
		}
	}
	return nil, fmt.Errorf("%w: container %s of storage account %s", ErrNotFound, container, accountName)
}
