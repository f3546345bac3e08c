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
	Fail      *Failure            // set: the operation is accepted and then fails
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
	v.version++
	v.state = Updating
	op := s.t.start(v, now, s.latency(v.kind))
	op.failure = p.Fail
	return s.t.view(v), op.view(), nil
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
		if _, ok := t.identities[id]; !ok {
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
	next := identityBlock{user: map[armid.ID]string{}}
	if p.Type == TypeSystemAssigned || p.Type == TypeBoth {
		next.system = present.system
		if next.system == nil {
			next.system = &model.SystemAssigned{ClientID: uuid.NewString(), PrincipalID: uuid.NewString()}
		}
	}
	if p.Type == TypeNone || p.Type == TypeSystemAssigned {
		return next
	}
	for id, spelling := range present.user {
		if _, gone := p.Remove[id]; !gone {
			next.user[id] = spelling
		}
	}
	for id, spelling := range p.Add {
		if _, kept := next.user[id]; !kept {
			next.user[id] = armSpelling(spelling)
		}
	}
	return next
}

func lastSegment(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }
