package state

import (
	"fmt"
	"maps"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// Find returns the ID of the scale set or virtual machine of which exactly one
// is named. The error wraps [ErrInvalid] or [ErrNotFound].
func (s *State) Find(scaleSet, vm string) (armid.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.t.oneOf(scaleSet, vm)
	if err != nil {
		return armid.ID{}, err
	}
	return v.id, nil
}

// Region returns the location of a resource, or "" if it is not there.
func (s *State) Region(id armid.ID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.t.resources[id]; ok {
		return strings.ToLower(v.location)
	}
	return ""
}

// Attach puts an identity on a resource, for ARM and IMDS at once, as if an
// operator had done it and Azure had finished. The error wraps [ErrInvalid],
// [ErrNotFound] or [ErrBusy].
func (s *State) Attach(a model.Attachment) (model.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	v, id, err := s.t.idle(a)
	if err != nil {
		return model.Resource{}, err
	}
	identity, ok := s.t.identities[id]
	if !ok {
		return model.Resource{}, fmt.Errorf("%w: identity %s", ErrNotFound, a.Identity)
	}
	v.shown.user[id] = attached{spelling: armSpelling(a.Identity), principal: identity.PrincipalID}
	v.usable = v.shown.clone()
	v.version++
	return s.t.model(v), nil
}

// Detach takes an identity off a resource, for ARM and IMDS at once. One that is
// not on it is no error; the errors are those of [State.Attach].
func (s *State) Detach(a model.Attachment) (model.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	v, id, err := s.t.idle(a)
	if err != nil {
		return model.Resource{}, err
	}
	delete(v.shown.user, id)
	v.usable = v.shown.clone()
	v.version++
	return s.t.model(v), nil
}

// idle returns the resource, on which nothing is under way, and the identity that
// a names.
func (t *tables) idle(a model.Attachment) (*resource, armid.ID, error) {
	v, err := t.oneOf(a.ScaleSet, a.VM)
	if err != nil {
		return nil, armid.ID{}, err
	}
	id, err := armid.ParseUserAssigned(a.Identity)
	if err != nil {
		return nil, armid.ID{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if v.operation != nil {
		return nil, armid.ID{}, fmt.Errorf("%w on %s", ErrBusy, v.spelling)
	}
	return v, id, nil
}

// Delete removes what d names, or begins to. The error wraps [ErrInvalid] or
// [ErrNotFound].
func (s *State) Delete(d model.Deletion) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	if d.Identity != "" {
		return s.t.deleteIdentity(d)
	}
	v, err := s.t.oneOf(d.ScaleSet, d.VM)
	if err != nil {
		return err
	}
	v.deleting = true
	v.version++
	if d.Begin {
		return nil
	}
	delete(s.t.resources, v.id)
	maps.DeleteFunc(s.t.nodes, func(_ string, n *node) bool { return n.resource == v })
	return nil
}

func (t *tables) deleteIdentity(d model.Deletion) error {
	if d.ScaleSet != "" || d.VM != "" || d.Begin {
		return invalid("an identity is deleted alone, and at once")
	}
	id, err := armid.ParseUserAssigned(d.Identity)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, ok := t.identities[id]; !ok {
		return fmt.Errorf("%w: identity %s", ErrNotFound, d.Identity)
	}
	delete(t.identities, id)
	return nil
}

// addPoison makes ARM refuse an identity from now on.
func (t *tables) addPoison(p poison.Poison) error {
	p, err := p.WithDefaults()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	id, err := armid.ParseUserAssigned(p.Identity)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, ok := t.poison[id]; ok {
		return invalid("identity %s is poison already", p.Identity)
	}
	p.Played = 0
	t.poison[id] = p
	return nil
}

// Cure lets ARM take an identity again that was poison. The error wraps
// [ErrInvalid] or [ErrNotFound].
func (s *State) Cure(identity string) error {
	id, err := armid.ParseUserAssigned(identity)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.t.poison[id]; !ok {
		return fmt.Errorf("%w: poison %s", ErrNotFound, identity)
	}
	delete(s.t.poison, id)
	return nil
}

// refusal returns how ARM refuses the identities that p adds, or nil. It counts.
func (t *tables) refusal(p IdentityPatch, in string) *poison.Refusal {
	added := map[armid.ID]string{}
	for id, spelling := range p.Add {
		added[id] = armSpelling(spelling)
	}
	refusal, chosen := poison.Choose(t.poison, added, in)
	for _, id := range chosen {
		played := t.poison[id]
		played.Played++
		t.poison[id] = played
	}
	return refusal
}
