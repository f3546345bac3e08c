package state

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// The types of an identity block, as ARM spells them.
const (
	TypeNone           = "None"
	TypeSystemAssigned = "SystemAssigned"
	TypeUserAssigned   = "UserAssigned"
	TypeBoth           = "SystemAssigned, UserAssigned"
)

// MaxIdentitiesPerRequest is how many identities one request may name.
const MaxIdentitiesPerRequest = 150

// IdentityPatch is a PATCH of a resource's identity block.
type IdentityPatch struct {
	Principal string   // object ID of the caller
	Resource  armid.ID // of a scale set or virtual machine
	IfMatch   string   // empty: whatever is there
	Type      string   // one of the types above
	Add       map[armid.ID]string
	Remove    map[armid.ID]string // both → the spelling of the client
	Fate      Fate
}

// Fate is what becomes of an operation, other than that it succeeds in its time.
type Fate struct {
	Fail    *Failure      // it fails
	Lost    bool          // ARM forgets its URL; it goes on
	Latency time.Duration // how long it runs; 0: as the settings say
}

// PatchIdentity starts the operation that p asks for, checking in ARM's order:
// rights on the resource, its existence, rights on the identities added, the
// block's type, their existence, the ETag, an operation that still runs. Errors
// are the typed ones of this package.
func (s *State) PatchIdentity(p IdentityPatch) (Resource, Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.t.settle(now)
	v, err := s.t.admit(p)
	if err != nil {
		return Resource{}, Operation{}, err
	}
	v.shown = p.apply(v.shown)
	s.t.enlist(v.shown)
	v.version++
	v.state = Updating
	latency := s.latency(v.kind)
	if p.Fate.Latency != 0 {
		latency = s.settings.Compress(p.Fate.Latency)
	}
	op := s.t.start(v, now, latency)
	op.principal, op.lost, op.failure = p.Principal, p.Fate.Lost, p.Fate.Fail
	if refusal := s.t.refusal(p, poison.InOperation); refusal != nil && op.failure == nil {
		op.failure = &Failure{Refusal: refusal}
	}
	return s.t.view(v), op.view(), nil
}

// enlist binds the entries that have just come to the identities of their names.
func (t *tables) enlist(b identityBlock) {
	for id, on := range b.user {
		if on.principal != "" {
			continue
		}
		on.principal = gone
		if identity, ok := t.identities[id]; ok {
			on.principal = identity.PrincipalID
		}
		b.user[id] = on
	}
}

func (t *tables) start(v *resource, now time.Time, latency time.Duration) *operation {
	op := &operation{
		id: uuid.NewString(), subscription: v.id.Subscription(), location: strings.ToLower(v.location),
		resource: v, started: now, due: now.Add(latency),
	}
	v.operation = op
	t.operations[op.id] = op
	return op
}

func (t *tables) admit(p IdentityPatch) (*resource, error) {
	if err := t.authorize(p.Principal, actionOn(p.Resource, verbWrite), p.Resource.String()); err != nil {
		return nil, err
	}
	v, ok := t.resources[p.Resource]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, p.Resource)
	}
	if v.deleting {
		return nil, fmt.Errorf("%w: %s", ErrDeleting, v.spelling)
	}
	if err := t.admitIdentities(p, v); err != nil {
		return nil, err
	}
	if p.IfMatch != "" && p.IfMatch != "*" && p.IfMatch != v.etag() {
		return nil, &PreconditionError{Given: p.IfMatch, Present: v.etag()}
	}
	if v.operation != nil {
		return nil, fmt.Errorf("%w on %s", ErrBusy, v.spelling)
	}
	return v, nil
}

func (t *tables) admitIdentities(p IdentityPatch, v *resource) error {
	var forbidden, missing []string
	for id, spelling := range p.Add {
		if t.authorize(p.Principal, actionAssign, id.String()) != nil {
			forbidden = append(forbidden, armSpelling(spelling))
		}
		if _, ok := t.identities[id]; !ok && !t.poison[id].IsActive() {
			missing = append(missing, armSpelling(spelling))
		}
	}
	slices.Sort(forbidden)
	slices.Sort(missing)
	if len(forbidden) > 0 {
		return &LinkedAuthorizationError{Principal: p.Principal, IDs: forbidden}
	}
	if err := p.check(v.shown); err != nil {
		return err
	}
	if len(missing) > 0 {
		return &MissingIdentityError{IDs: missing}
	}
	if refusal := t.refusal(p, poison.InRequest); refusal != nil {
		return &PoisonError{Refusal: *refusal}
	}
	return nil
}

// check holds the rules between an identity block's type and its map.
func (p IdentityPatch) check(present identityBlock) error {
	refuse := func(format string, args ...any) error {
		return &IdentityBlockError{Message: fmt.Sprintf(format, args...)}
	}
	if n := len(p.Add) + len(p.Remove); n > MaxIdentitiesPerRequest {
		return refuse("The request names %d user assigned identities. The maximum is %d.", n, MaxIdentitiesPerRequest)
	}
	switch p.Type {
	case TypeNone, TypeSystemAssigned:
		if len(p.Add) > 0 {
			return refuse("ResourceIdentity identityIds should not be provided if the type is %q.", p.Type)
		}
		return nil
	case TypeUserAssigned, TypeBoth:
		if len(p.apply(present).user) == 0 {
			return refuse("ResourceIdentity identityIds must not be null or empty for %q identity.", p.Type)
		}
		return nil
	}
	return refuse("The resource identity type %q is invalid.", p.Type)
}

// apply returns the block that p makes of present. It is pure but for a new
// system-assigned identity's GUIDs.
func (p IdentityPatch) apply(present identityBlock) identityBlock {
	next := identityBlock{user: map[armid.ID]attached{}}
	if p.Type == TypeSystemAssigned || p.Type == TypeBoth {
		next.system = present.system
		if next.system == nil {
			next.system = &model.SystemAssigned{ClientID: uuid.NewString(), PrincipalID: uuid.NewString()}
		}
	}
	if p.Type == TypeNone || p.Type == TypeSystemAssigned {
		return next
	}
	for id, on := range present.user {
		if _, removed := p.Remove[id]; !removed {
			next.user[id] = on
		}
	}
	for id, spelling := range p.Add {
		if _, kept := next.user[id]; !kept {
			next.user[id] = attached{spelling: armSpelling(spelling)}
		}
	}
	return next
}

func lastSegment(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }
