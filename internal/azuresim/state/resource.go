package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// The states of a resource and of an operation, as ARM spells them.
const (
	Succeeded  = "Succeeded"
	Failed     = "Failed"
	Updating   = "Updating"
	InProgress = "InProgress"
)

// The types of compute resources, as ARM spells them.
const (
	TypeScaleSet       = "Microsoft.Compute/virtualMachineScaleSets"
	TypeVirtualMachine = "Microsoft.Compute/virtualMachines"
)

// ResourceType returns the type of a compute resource as ARM spells it, or "" for
// the ID of anything else.
func ResourceType(id armid.ID) string {
	for _, known := range []string{TypeScaleSet, TypeVirtualMachine} {
		if id.Type() == strings.ToLower(known) {
			return known
		}
	}
	return ""
}

// resource is a scale set or a virtual machine. It has two identity blocks: ARM
// shows the one that was last asked for; IMDS knows the one that the last
// operation put in force.
type resource struct {
	id        armid.ID
	kind      string // [TypeScaleSet] or [TypeVirtualMachine]
	spelling  string // the ID as it was created
	uniqueID  string
	location  string
	version   int
	state     string
	shown     identityBlock
	usable    identityBlock
	operation *operation // while one runs
}

type identityBlock struct {
	system *model.SystemAssigned
	user   map[armid.ID]string // → the spelling that ARM answers
}

func (b identityBlock) clone() identityBlock {
	return identityBlock{system: b.system, user: maps.Clone(b.user)}
}

// typ is the identity block's type as ARM spells it.
func (b identityBlock) typ() string {
	switch {
	case b.system != nil && len(b.user) > 0:
		return TypeBoth
	case b.system != nil:
		return TypeSystemAssigned
	case len(b.user) > 0:
		return TypeUserAssigned
	}
	return TypeNone
}

func newResource(id armid.ID, m model.Resource) *resource {
	location := m.Location
	if location == "" {
		location = defaultLocation
	}
	return &resource{
		id: id, kind: ResourceType(id), spelling: m.ID, uniqueID: uuid.NewString(), location: location,
		version: 1, state: Succeeded, shown: identityBlock{user: map[armid.ID]string{}},
	}
}

// etag is quoted, as HTTP wants it.
func (v *resource) etag() string { return strconv.Quote(strconv.Itoa(v.version)) }

func (v *resource) model() model.Resource {
	return model.Resource{
		ID: v.spelling, Location: v.location, SystemAssigned: v.shown.system,
		UserAssigned: slices.Sorted(maps.Values(v.shown.user)),
		ETag:         v.etag(), ProvisioningState: v.state,
	}
}

// operation is one asynchronous PATCH.
type operation struct {
	id, subscription, location string
	resource                   *resource
	started, due               time.Time
	failure                    *Failure // how it ends; nil: well
	settled                    bool
}

// Failure is how an operation ends that does not succeed.
type Failure struct {
	Code, Message string
}

// operationsKept is how long ARM still answers for an operation that has ended.
const operationsKept = time.Hour

// settle ends the operations that are due.
func (t *tables) settle(now time.Time) {
	for id, op := range t.operations {
		if now.After(op.due.Add(operationsKept)) {
			delete(t.operations, id)
		}
		if !op.settled && !now.Before(op.due) {
			op.end()
		}
	}
}

// end puts the block that ARM shows in force or, on a failure, takes it back.
func (op *operation) end() {
	v := op.resource
	op.settled = true
	v.operation = nil
	if op.failure == nil {
		v.state = Succeeded
		v.usable = v.shown.clone()
		return
	}
	v.state = Failed
	v.shown = v.usable.clone()
	v.version++
}

// Resource is a scale set or a virtual machine as ARM answers it.
type Resource struct {
	ID, Name, Location, UniqueID string
	Kind                         string // [TypeScaleSet] or [TypeVirtualMachine]
	ETag, ProvisioningState      string
	Type                         string // of the identity block
	TenantID                     string
	System                       *model.SystemAssigned
	User                         []Identity // Spelling is this resource's, sorted
}

// Operation is an asynchronous operation as ARM answers it.
type Operation struct {
	ID           string
	Subscription string
	Location     string
	Status       string
	Resource     armid.ID
	Started      time.Time
	Runs         time.Duration // from its start to its end
	Ended        time.Time     // zero while it runs
	Failure      *Failure
}

// Resource returns the resource for a principal that may read it. The error is
// an [*AuthorizationError] or wraps [ErrNotFound]; ARM looks at rights first.
func (s *State) Resource(principal string, id armid.ID) (Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	if err := s.t.authorize(principal, actionOn(id, verbRead), id.String()); err != nil {
		return Resource{}, err
	}
	v, ok := s.t.resources[id]
	if !ok {
		return Resource{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return s.t.view(v), nil
}

// Operation returns an operation of a subscription and location. The error wraps
// [ErrNotFound].
func (s *State) Operation(subscription, location, id string) (Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.settle(s.now())
	op, ok := s.t.operations[id]
	if !ok || op.subscription != subscription || op.location != location {
		return Operation{}, fmt.Errorf("%w: operation %s", ErrNotFound, id)
	}
	return op.view(), nil
}

func (op *operation) view() Operation {
	view := Operation{
		ID: op.id, Subscription: op.subscription, Location: op.location, Status: InProgress,
		Resource: op.resource.id, Started: op.started, Runs: op.due.Sub(op.started),
	}
	if !op.settled {
		return view
	}
	view.Ended, view.Failure, view.Status = op.due, op.failure, Succeeded
	if op.failure != nil {
		view.Status = Failed
	}
	return view
}

func (t *tables) view(v *resource) Resource {
	view := Resource{
		ID: v.spelling, Name: lastSegment(v.spelling), Location: v.location, UniqueID: v.uniqueID, Kind: v.kind,
		ETag: v.etag(), ProvisioningState: v.state, Type: v.shown.typ(), TenantID: t.tenant, System: v.shown.system,
	}
	for id, spelling := range v.shown.user {
		identity := Identity{ID: id, Spelling: spelling}
		if present, ok := t.identities[id]; ok {
			identity.ClientID, identity.PrincipalID = present.ClientID, present.PrincipalID
		}
		view.User = append(view.User, identity)
	}
	slices.SortFunc(view.User, func(a, b Identity) int { return cmp.Compare(a.Spelling, b.Spelling) })
	return view
}

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
	v, err := s.t.oneOf(a.ScaleSet, a.VM)
	if err != nil {
		return model.Resource{}, err
	}
	id, err := armid.ParseUserAssigned(a.Identity)
	if err != nil {
		return model.Resource{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, ok := s.t.identities[id]; !ok {
		return model.Resource{}, fmt.Errorf("%w: identity %s", ErrNotFound, a.Identity)
	}
	if v.operation != nil {
		return model.Resource{}, fmt.Errorf("%w on %s", ErrBusy, v.spelling)
	}
	v.shown.user[id] = armSpelling(a.Identity)
	v.usable = v.shown.clone()
	v.version++
	return v.model(), nil
}
