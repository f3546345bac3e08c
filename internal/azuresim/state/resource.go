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
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// The states of a resource and of an operation, as ARM spells them.
const (
	Succeeded  = "Succeeded"
	Failed     = "Failed"
	Updating   = "Updating"
	Deleting   = "Deleting"
	InProgress = "InProgress"
)

// The types of compute resources, as ARM spells them.
const (
	TypeScaleSet       = "Microsoft.Compute/virtualMachineScaleSets"
	TypeVirtualMachine = "Microsoft.Compute/virtualMachines"
)

// The orchestration modes of a scale set, as ARM spells them.
const (
	Uniform  = "Uniform"
	Flexible = "Flexible"
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
	mode      string // orchestration mode of a scale set
	partOf    string // ID of the Flexible scale set that a virtual machine is an instance of
	version   int
	state     string
	deleting  bool
	shown     identityBlock
	usable    identityBlock
	operation *operation // while one runs
}

type identityBlock struct {
	system *model.SystemAssigned
	user   map[armid.ID]attached
}

// attached is an identity on a resource. It is the one that was there when it was
// attached: one that is made again under its name is another.
type attached struct {
	spelling  string // as ARM answers it
	principal string
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
		version: 1, state: Succeeded, deleting: m.Deleting, shown: identityBlock{user: map[armid.ID]attached{}},
	}
}

// etag is quoted, as HTTP wants it.
func (v *resource) etag() string { return strconv.Quote(strconv.Itoa(v.version)) }

// provisioningState is what ARM shows.
func (v *resource) provisioningState() string {
	if v.deleting {
		return Deleting
	}
	return v.state
}

// isCurrent reports whether the identity that was attached is still the one of
// its name.
func (t *tables) isCurrent(id armid.ID, on attached) bool {
	present, ok := t.identities[id]
	return ok && present.PrincipalID == on.principal
}

func (t *tables) model(v *resource) model.Resource {
	m := model.Resource{
		ID: v.spelling, Location: v.location, SystemAssigned: v.shown.system, ScaleSet: v.partOf, Deleting: v.deleting,
		ETag: v.etag(), ProvisioningState: v.provisioningState(),
	}
	if v.mode != Uniform {
		m.OrchestrationMode = v.mode
	}
	for id, on := range v.shown.user {
		m.UserAssigned = append(m.UserAssigned, on.spelling)
		if !t.isCurrent(id, on) {
			m.NullPrincipals = append(m.NullPrincipals, on.spelling)
		}
	}
	slices.Sort(m.UserAssigned)
	slices.Sort(m.NullPrincipals)
	return m
}

// operation is one asynchronous PATCH.
type operation struct {
	id, subscription, location string
	resource                   *resource
	started, due               time.Time
	principal                  string   // who started it
	failure                    *Failure // how it ends; nil: well
	lost                       bool     // ARM does not know its URL
	settled                    bool
}

// Failure is how an operation ends that does not succeed: by Code and Message,
// or by a refusal, about which the surface knows the words.
type Failure struct {
	Code, Message string
	Refusal       *poison.Refusal
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
	Mode                         string // of a scale set
	PartOf                       string // the Flexible scale set of a virtual machine
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
	Spelling     string // of the resource's ID
	Principal    string // object ID of who started it
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
	if !ok || op.lost || op.subscription != subscription || op.location != location {
		return Operation{}, fmt.Errorf("%w: operation %s", ErrNotFound, id)
	}
	return op.view(), nil
}

func (op *operation) view() Operation {
	view := Operation{
		ID: op.id, Subscription: op.subscription, Location: op.location, Status: InProgress,
		Resource: op.resource.id, Spelling: op.resource.spelling, Principal: op.principal, Started: op.started, Runs: op.due.Sub(op.started),
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
		Mode: v.mode, PartOf: v.partOf, ETag: v.etag(), ProvisioningState: v.provisioningState(), Type: v.shown.typ(), TenantID: t.tenant, System: v.shown.system,
	}
	for id, on := range v.shown.user {
		identity := Identity{ID: id, Spelling: on.spelling}
		if present := t.identities[id]; t.isCurrent(id, on) {
			identity.ClientID, identity.PrincipalID = present.ClientID, present.PrincipalID
		}
		view.User = append(view.User, identity)
	}
	slices.SortFunc(view.User, func(a, b Identity) int { return cmp.Compare(a.Spelling, b.Spelling) })
	return view
}
