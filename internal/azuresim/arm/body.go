package arm

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// patchBody is all that a PATCH may hold here.
type patchBody struct {
	Identity *struct {
		Type                   string                    `json:"type"`
		UserAssignedIdentities map[string]*identityValue `json:"userAssignedIdentities"`
	} `json:"identity"`
}

// identityValue is what ARM answers for an identity; a client may send it back.
type identityValue struct {
	PrincipalID *string `json:"principalId"`
	ClientID    *string `json:"clientId"`
}

// decodePatch reads a PATCH. It notes what was asked in the journal's entry.
func decodePatch(call *wire.Call, id armid.ID) (state.IdentityPatch, error) {
	p := state.IdentityPatch{Resource: id, IfMatch: call.Header.Get("If-Match"), Add: map[armid.ID]string{}, Remove: map[armid.ID]string{}}
	call.Entry.IfMatch = p.IfMatch
	if call.Header.Get("If-None-Match") != "" {
		return p, wire.Unexpected(http.StatusBadRequest, "InvalidHeader", "If-None-Match is not simulated for PATCH.")
	}
	var body patchBody
	if err := model.Decode(call.Body, &body); err != nil {
		return p, wire.Unexpected(http.StatusBadRequest, "InvalidRequestContent",
			"The request content was invalid and could not be deserialized: '%s'.", err)
	}
	if body.Identity == nil {
		return p, wire.Unexpected(http.StatusBadRequest, "InvalidRequestContent", "The request content holds no identity.")
	}
	for _, spelling := range slices.Sorted(maps.Keys(body.Identity.UserAssignedIdentities)) {
		value := body.Identity.UserAssignedIdentities[spelling]
		if err := addChange(&p, call, spelling, value == nil); err != nil {
			return p, err
		}
	}
	kind, err := parseType(body.Identity.Type)
	p.Type = kind
	return p, err
}

func addChange(p *state.IdentityPatch, call *wire.Call, spelling string, remove bool) error {
	if remove {
		call.Entry.Removed = append(call.Entry.Removed, spelling)
	} else {
		call.Entry.Added = append(call.Entry.Added, spelling)
	}
	id, err := armid.ParseUserAssigned(spelling)
	if err != nil {
		return wire.Refuse(http.StatusBadRequest, "InvalidIdentityValues",
			"Invalid value for the identities '%s'. The 'UserAssignedIdentities' property keys should only be empty json objects, null or the resource existing property.", spelling)
	}
	_, added := p.Add[id]
	_, removed := p.Remove[id]
	if added || removed {
		return wire.Refuse(http.StatusBadRequest, "InvalidIdentityValues", "The identity '%s' is named more than once.", spelling)
	}
	if remove {
		p.Remove[id] = spelling
	} else {
		p.Add[id] = spelling
	}
	return nil
}

// parseType reads an identity type as ARM does: without case, with or without
// the blank.
func parseType(s string) (string, error) {
	folded := strings.ToLower(strings.ReplaceAll(s, " ", ""))
	for _, kind := range []string{state.TypeNone, state.TypeSystemAssigned, state.TypeUserAssigned, state.TypeBoth} {
		if folded == strings.ToLower(strings.ReplaceAll(kind, " ", "")) {
			return kind, nil
		}
	}
	if s == "" {
		return "", wire.Refuse(http.StatusBadRequest, "InvalidParameter", "ResourceIdentity Type must be provided.")
	}
	return "", wire.Unexpected(http.StatusBadRequest, "InvalidParameter", "The value '%s' of ResourceIdentity Type is invalid.", s)
}

type resourceBody struct {
	Name       string             `json:"name"`
	ID         string             `json:"id"`
	Type       string             `json:"type"`
	Location   string             `json:"location"`
	ETag       string             `json:"etag"`
	Identity   *identityBody      `json:"identity,omitempty"`
	Properties resourceProperties `json:"properties"`
}

// resourceProperties are a documented subset of each kind's.
type resourceProperties struct {
	ProvisioningState string       `json:"provisioningState"`
	OrchestrationMode string       `json:"orchestrationMode,omitempty"` // of a scale set
	UniqueID          string       `json:"uniqueId,omitempty"`          // of a scale set
	VMID              string       `json:"vmId,omitempty"`              // of a virtual machine
	ScaleSet          *subResource `json:"virtualMachineScaleSet,omitempty"`
}

type subResource struct {
	ID string `json:"id"`
}

type identityBody struct {
	Type                   string                   `json:"type"`
	PrincipalID            string                   `json:"principalId,omitempty"`
	TenantID               string                   `json:"tenantId,omitempty"`
	UserAssignedIdentities map[string]identityValue `json:"userAssignedIdentities,omitempty"`
}

// encodeResource writes a scale set or a virtual machine; like ARM it leaves the
// identity block out when there is none.
func encodeResource(v state.Resource) resourceBody {
	body := resourceBody{
		Name: v.Name, ID: v.ID, Type: v.Kind, Location: v.Location, ETag: v.ETag,
		Properties: resourceProperties{ProvisioningState: v.ProvisioningState},
	}
	if v.Kind == state.TypeScaleSet {
		body.Properties.OrchestrationMode, body.Properties.UniqueID = v.Mode, v.UniqueID
	} else {
		body.Properties.VMID = v.UniqueID
	}
	if v.PartOf != "" {
		body.Properties.ScaleSet = &subResource{ID: v.PartOf}
	}
	if v.Type == state.TypeNone {
		return body
	}
	body.Identity = &identityBody{Type: v.Type}
	if v.System != nil {
		body.Identity.PrincipalID, body.Identity.TenantID = v.System.PrincipalID, v.TenantID
	}
	for _, identity := range v.User {
		if body.Identity.UserAssignedIdentities == nil {
			body.Identity.UserAssignedIdentities = map[string]identityValue{}
		}
		body.Identity.UserAssignedIdentities[identity.Spelling] = identityValue{
			PrincipalID: emptyIsNull(identity.PrincipalID), ClientID: emptyIsNull(identity.ClientID),
		}
	}
	return body
}

func emptyIsNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

type operationBody struct {
	StartTime time.Time       `json:"startTime"`
	EndTime   *time.Time      `json:"endTime,omitempty"`
	Status    string          `json:"status"`
	Error     *operationError `json:"error,omitempty"`
	Name      string          `json:"name"`
}

type operationError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (s *Server) encodeOperation(op state.Operation) operationBody {
	body := operationBody{StartTime: op.Started, Status: op.Status, Name: op.ID}
	if !op.Ended.IsZero() {
		body.EndTime = &op.Ended
	}
	switch {
	case op.Failure == nil:
	case op.Failure.Refusal != nil:
		on := target{path: op.Spelling, kind: state.ResourceType(op.Resource)}
		refused := on.poisoned(*op.Failure.Refusal, token.Claims{AppID: op.Principal, ObjectID: op.Principal}, s.State.Settings())
		body.Error = &operationError{Code: refused.Code, Message: refused.Message}
	default:
		body.Error = &operationError{Code: op.Failure.Code, Message: op.Failure.Message}
	}
	return body
}

func operationURL(op state.Operation, version string) string {
	return fmt.Sprintf("https://%s/subscriptions/%s/providers/Microsoft.Compute/locations/%s/operations/%s?api-version=%s",
		Host, op.Subscription, op.Location, op.ID, version)
}

// pollInterval is how often ARM wants an operation asked for.
const pollInterval = 10 * time.Second

// pollAfter is when a client should ask for an operation again: 0 for one that
// ends at once, else when it may have ended, or at ARM's interval if that is
// sooner.
func (s *Server) pollAfter(op state.Operation) string {
	if op.Runs <= 0 {
		return "0"
	}
	return wholeSeconds(min(op.Runs, s.State.Settings().Compress(pollInterval)))
}

// wholeSeconds is d as Retry-After says it: rounded up, 1 at least.
func wholeSeconds(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}
