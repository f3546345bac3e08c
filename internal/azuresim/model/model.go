// Package model is the state document of the simulator: what a user writes to
// set Azure up and reads to see how it stands.
//
// It is plain data, shared by the state, the control API and its client. It
// must not hold behaviour beyond reading the document and redacting secrets.
package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"sigs.k8s.io/yaml"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

// Document is the whole simulated Azure. Subscriptions and resource groups need
// no entry: they exist as soon as an ID names them.
type Document struct {
	// Tenant is the GUID of the one tenant; empty keeps the present one.
	Tenant string `json:"tenant,omitempty"`
	// Settings say how Azure behaves; nil keeps the present ones.
	Settings        *settings.Settings `json:"settings,omitempty"`
	Identities      []Identity         `json:"identities,omitempty"`
	Poison          []poison.Poison    `json:"poison,omitempty"` // identities that ARM refuses
	Applications    []Application      `json:"applications,omitempty"`
	ScaleSets       []ScaleSet         `json:"scaleSets,omitempty"`
	VirtualMachines []VirtualMachine   `json:"virtualMachines,omitempty"`
	Nodes           []Node             `json:"nodes,omitempty"`
	RoleAssignments []RoleAssignment   `json:"roleAssignments,omitempty"`
	Vaults          []Vault            `json:"vaults,omitempty"`
	StorageAccounts []StorageAccount   `json:"storageAccounts,omitempty"`
}

// Identity is a user-assigned managed identity.
type Identity struct {
	ID          string `json:"id"`                    // ARM ID
	ClientID    string `json:"clientID,omitempty"`    // a GUID; empty: a new one
	PrincipalID string `json:"principalID,omitempty"` // object ID of its service principal; empty: a new one
}

// Application is an application with its service principal.
type Application struct {
	Name        string   `json:"name,omitempty"`
	ClientID    string   `json:"clientID,omitempty"`    // empty: a new one
	PrincipalID string   `json:"principalID,omitempty"` // object ID of the service principal; empty: a new one
	Secrets     []Secret `json:"secrets,omitempty"`     // empty entries when read
	// Certificates are those that the application may sign with, in PEM.
	Certificates []string `json:"certificates,omitempty"`
}

// Resource is a compute resource that carries managed identities.
type Resource struct {
	ID       string `json:"id"`
	Location string `json:"location,omitempty"` // empty: westeurope
	// SystemAssigned is the resource's own identity, or nil.
	SystemAssigned *SystemAssigned `json:"systemAssigned,omitempty"`
	// UserAssigned holds the ARM IDs of the attached identities. NullPrincipals
	// are those of them that were deleted since, and perhaps made again: ARM shows
	// them without IDs and IMDS does not know them.
	UserAssigned   []string `json:"userAssigned,omitempty"`
	NullPrincipals []string `json:"nullPrincipals,omitempty"`
	// OrchestrationMode is a scale set's: Uniform, if empty, or Flexible. The
	// identities of a Flexible one's instances are their own.
	OrchestrationMode string `json:"orchestrationMode,omitempty"`
	// ScaleSet is the ARM ID of the Flexible scale set that a virtual machine is an
	// instance of.
	ScaleSet string `json:"scaleSet,omitempty"`
	// Deleting: its deletion has begun; ARM refuses to change it.
	Deleting bool `json:"deleting,omitempty"`

	// Set by the simulator; ignored when a document is loaded.
	ETag              string `json:"etag,omitempty"`
	ProvisioningState string `json:"provisioningState,omitempty"`
}

// The kinds of resources differ by their ID alone.
type (
	// ScaleSet is a virtual machine scale set.
	ScaleSet = Resource
	// VirtualMachine is a virtual machine with identities of its own. A Flexible
	// scale set's instances are such.
	VirtualMachine = Resource
)

// SystemAssigned is the managed identity of one resource.
type SystemAssigned struct {
	ClientID    string `json:"clientID,omitempty"`    // empty: a new one
	PrincipalID string `json:"principalID,omitempty"` // empty: a new one
}

// Node is an instance of a scale set or a virtual machine of its own: exactly
// one of ScaleSet and VM is set.
type Node struct {
	Name     string `json:"name"`
	ScaleSet string `json:"scaleSet,omitempty"` // ARM ID
	Instance int    `json:"instance"`           // the instance number in the scale set; 0 with VM
	VM       string `json:"vm,omitempty"`       // ARM ID
	// Prefixes are the addresses from which this node's IMDS is asked: the
	// node's own and its pods'. Real IMDS answers whatever comes from the VM.
	Prefixes []netip.Prefix `json:"prefixes"`
}

// RoleAssignment gives a principal a role at a scope and below.
type RoleAssignment struct {
	Principal string `json:"principal"` // object ID
	Role      string `json:"role"`      // a built-in role's name
	Scope     string `json:"scope"`     // a subscription, resource group or resource ID
}

// Vault is a key vault with role-based access. Its host name is NAME.vault.azure.net
// where NAME is the last segment of its ID.
type Vault struct {
	ID      string        `json:"id"`
	Secrets []VaultSecret `json:"secrets,omitempty"`
}

// VaultSecret is a secret of a vault. Writing one again makes a new version.
type VaultSecret struct {
	Name        string `json:"name"`
	Value       Secret `json:"value"` // empty when read
	ContentType string `json:"contentType,omitempty"`
	Version     string `json:"version,omitempty"` // set by the simulator
}

// StorageAccount is a storage account with role-based access. Its host name is
// NAME.blob.core.windows.net where NAME is the last segment of its ID.
type StorageAccount struct {
	ID         string      `json:"id"`
	Containers []Container `json:"containers,omitempty"`
}

// Container is a container of blobs.
type Container struct {
	Name  string `json:"name"`
	Blobs []Blob `json:"blobs,omitempty"`
}

// Blob is a block blob.
type Blob struct {
	Name    string `json:"name"`
	Content string `json:"content,omitempty"`
}

// Attachment asks for an identity on a resource, as if an operator had attached
// it and Azure had finished. Exactly one of ScaleSet and VM is set.
type Attachment struct {
	ScaleSet string `json:"scaleSet,omitempty"` // ARM ID
	VM       string `json:"vm,omitempty"`       // ARM ID
	Identity string `json:"identity"`
}

// Deletion removes one thing: exactly one of the IDs is set.
type Deletion struct {
	// Identity is the ARM ID of a user-assigned identity. Whatever it is attached
	// to keeps an entry with a null principal, also when an identity of that name
	// is made again.
	Identity string `json:"identity,omitempty"`
	ScaleSet string `json:"scaleSet,omitempty"` // ARM ID; its nodes go with it
	VM       string `json:"vm,omitempty"`       // ARM ID
	// Begin only begins the deletion of a scale set or virtual machine: ARM shows
	// it as Deleting and refuses to change it.
	Begin bool `json:"begin,omitempty"`
}

// Burst asks for a resource many times at once, as another client of the
// subscription would. Exactly one of ScaleSet and VM is set.
type Burst struct {
	ScaleSet string `json:"scaleSet,omitempty"` // ARM ID
	VM       string `json:"vm,omitempty"`       // ARM ID
	Verb     string `json:"verb"`               // get or update
	Requests int    `json:"requests"`
	// OnlySubscription spares the resource's own bucket, as requests for other
	// resources would.
	OnlySubscription bool `json:"onlySubscription,omitempty"`
}

// BurstResult is how many tokens are left in the buckets, by name.
type BurstResult struct {
	Left map[string]int `json:"left"`
}

// Secret is a value that never shows in a log or an error. Its JSON is the value
// itself, since a document is how secrets are given; the simulator blanks them
// in every document that it returns.
type Secret string

// String hides the value.
func (Secret) String() string { return "[redacted]" }

// GoString hides the value.
func (Secret) GoString() string { return "[redacted]" }

// LogValue hides the value.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Parse reads a document in YAML or JSON. A field that is not of the document is
// an error that names it.
func Parse(text []byte) (Document, error) {
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return Document{}, fmt.Errorf("reading state document: %w", err)
	}
	var doc Document
	if err := Decode(asJSON, &doc); err != nil {
		return Document{}, fmt.Errorf("reading state document: %w", err)
	}
	return doc, nil
}

// Decode reads exactly one JSON value into v; unknown fields and anything behind
// the value are errors.
func Decode(text []byte, v any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return fmt.Errorf("decoding JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decoding JSON: there is more text behind the value")
	}
	return nil
}
