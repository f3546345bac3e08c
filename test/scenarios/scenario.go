// Package scenarios is what the controller must do, as stories in YAML: what is
// there, what happens, and what is to come of it.
//
// The files are read by people; this package reads them for the tests, which
// play each story twice: on the pure rules with the simulator's state alone, and
// on a real API server with the simulated Azure and the real controller.
// It must not know a rule of the controller's: the files do.
package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// Scenario is one story.
type Scenario struct {
	Name string `json:"name"`
	// Pins says in words which behaviour the story keeps.
	Pins string `json:"pins"`
	// Only is pure or real for a story that can be played one way alone; Because
	// says why.
	Only    string  `json:"only,omitempty"`
	Because string  `json:"because,omitempty"`
	Install Install `json:"install,omitzero"`
	Given   Given   `json:"given"`
	Steps   []Step  `json:"steps"`

	// File is where the story stands.
	File string `json:"-"`
}

// The ways to play a story.
const (
	Pure = "pure"
	Real = "real"
)

// Install is how the controller was installed.
type Install struct {
	// Namespaced: no pod may use an identity of another namespace.
	Namespaced bool `json:"namespaced,omitempty"`
}

// Given is what there is before the controller starts to look.
type Given struct {
	Azure Azure           `json:"azure"`
	Nodes map[string]Node `json:"nodes,omitempty"`
	Objects
	// Old are assignments that the archived controller left behind.
	Old []Old `json:"old,omitempty"`
}

// Azure is what there is in Azure, by short names.
type Azure struct {
	Identities map[string]Managed  `json:"identities,omitempty"`
	ScaleSets  map[string]Resource `json:"scaleSets,omitempty"`
	VMs        map[string]Resource `json:"vms,omitempty"`
}

// Managed is a user-assigned managed identity.
type Managed struct {
	Missing   bool           `json:"missing,omitempty"`   // there is none of that name
	Forbidden bool           `json:"forbidden,omitempty"` // the controller may not assign it
	Immutable bool           `json:"immutable,omitempty"` // --immutable-user-msis names it
	Poison    *poison.Poison `json:"poison,omitempty"`    // ARM refuses it; its identity is this one
}

// Resource is a scale set or a virtual machine of its own.
type Resource struct {
	Name           string   `json:"name,omitempty"`           // in Azure; empty: the short name
	Group          string   `json:"group,omitempty"`          // resource group; empty: nodes
	Subscription   string   `json:"subscription,omitempty"`   // main, if empty, or other
	Attached       []string `json:"attached,omitempty"`       // by somebody else
	NullPrincipals []string `json:"nullPrincipals,omitempty"` // those of them that were deleted since
	SystemAssigned bool     `json:"systemAssigned,omitempty"`
	Flexible       bool     `json:"flexible,omitempty"` // a scale set of virtual machines with identities of their own
	In             string   `json:"in,omitempty"`       // the Flexible scale set of a virtual machine
}

// Node is a node of the cluster.
type Node struct {
	Of         string `json:"of,omitempty"`         // the scale set that it is an instance of, or its own virtual machine
	Casing     string `json:"casing,omitempty"`     // of its providerID: upper, lower or mixed
	ProviderID string `json:"providerID,omitempty"` // as it is, in place of Of
}

// Objects are objects of the cluster. Where no namespace is given it is "a".
type Objects struct {
	Identities []Identity `json:"identities,omitempty"`
	Bindings   []Binding  `json:"bindings,omitempty"`
	Pods       []Pod      `json:"pods,omitempty"`
}

// Identity is an AzureIdentity.
type Identity struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Azure       string            `json:"azure,omitempty"`      // the managed identity; empty: the name
	Casing      string            `json:"casing,omitempty"`     // of resourceID and clientID: upper, lower or mixed
	ResourceID  string            `json:"resourceID,omitempty"` // as it is, in place of Azure's
	Type        int               `json:"type,omitempty"`
	Namespaced  bool              `json:"namespaced,omitempty"` // by annotation
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Binding is an AzureIdentityBinding.
type Binding struct {
	Name      string            `json:"name,omitempty"` // empty: the identity's
	Namespace string            `json:"namespace,omitempty"`
	Identity  string            `json:"identity"`
	Selector  string            `json:"selector,omitempty"` // empty: the identity's name
	Labels    map[string]string `json:"labels,omitempty"`
}

// Pod is a pod. Its names are whole: those of a StatefulSet's pods repeat.
type Pod struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
	Selector  string `json:"selector,omitempty"` // the label aadpodidbinding; empty: none
	Node      string `json:"node,omitempty"`     // empty: not scheduled
	Phase     string `json:"phase,omitempty"`    // Succeeded, Failed, …; empty: none yet
	// Terminating: it was deleted, and its programs still say goodbye.
	Terminating bool `json:"terminating,omitempty"`
}

// Old is an AzureAssignedIdentity as the archived controller wrote it.
type Old struct {
	Pod      string `json:"pod"`
	Identity string `json:"identity"`
	Binding  string `json:"binding,omitempty"` // empty: the identity's
	Node     string `json:"node"`
	Status   string `json:"status"` // Created, Assigned, Unassigned or none
}

// Step is something that happens, and what comes of it.
type Step struct {
	Name string `json:"name,omitempty"`
	Do   []Edit `json:"do,omitempty"`
	// Refused are words with which the API server refuses the edits.
	Refused string `json:"refused,omitempty"`
	Expect  Expect `json:"expect"`
}

// Edit is one thing that happens. Those of one step happen one after the other,
// without waiting for the controller.
type Edit struct {
	Create  *Objects        `json:"create,omitempty"`
	Replace *Objects        `json:"replace,omitempty"` // edits objects: they are what they say now
	Delete  *Names          `json:"delete,omitempty"`
	Nodes   map[string]Node `json:"nodes,omitempty"` // join the cluster

	// What others do in Azure, by the resource's name.
	Attach   map[string][]string `json:"attach,omitempty"`
	Detach   map[string][]string `json:"detach,omitempty"`
	Recreate []string            `json:"recreate,omitempty"` // delete managed identities and make them again
	Make     []string            `json:"make,omitempty"`     // make missing managed identities
	Cure     []string            `json:"cure,omitempty"`     // end their poison
	Deleting []string            `json:"deleting,omitempty"` // begin to delete resources
	Fault    *Fault              `json:"fault,omitempty"`

	// Restart ends the controller and starts it again, installed as Install says
	// where it is set.
	Restart bool     `json:"restart,omitempty"`
	Install *Install `json:"install,omitempty"`
}

// Names name objects, as NAMESPACE/NAME outside namespace "a".
type Names struct {
	Identities []string `json:"identities,omitempty"`
	Bindings   []string `json:"bindings,omitempty"`
	Pods       []string `json:"pods,omitempty"`
	Nodes      []string `json:"nodes,omitempty"`
}

// Fault is what ARM does wrong with requests for a resource.
type Fault struct {
	Resource string         `json:"resource"`
	Method   string         `json:"method,omitempty"`
	Times    int            `json:"times,omitempty"`
	Response fault.Response `json:"response"`
}

// Expect is how things stand when the controller has nothing left to do. What is
// left out is not looked at; what is there is complete.
type Expect struct {
	// Pods are the assignments of all pods: by pod and AzureIdentity, the status.
	Pods map[string]map[string]string `json:"pods,omitempty"`
	// Azure is what is attached to a resource, Owned what the controller holds for
	// its own there.
	Azure map[string][]string `json:"azure,omitempty"`
	Owned map[string][]string `json:"owned,omitempty"`
	// NullPrincipals are those that are attached and have no principal any more.
	NullPrincipals map[string][]string `json:"nullPrincipals,omitempty"`
	// Patches is how many PATCHes a resource got in this step.
	Patches map[string]Count `json:"patches,omitempty"`
	// How many assignments were created, deleted, and rewritten in this step:
	// given another content, or taken back to Created.
	Created   *Count `json:"created,omitempty"`
	Deleted   *Count `json:"deleted,omitempty"`
	Rewritten *Count `json:"rewritten,omitempty"`
	// Names are assignments' names, by pod and AzureIdentity. NS(x) in them is the
	// name that namespace x has in the test.
	Names map[string]map[string]string `json:"names,omitempty"`

	// What follows is looked at in the real world alone.

	// Reasons are those of the condition Ready of assignments, by pod and
	// AzureIdentity; IdentityReasons those of AzureIdentities' conditions: of one
	// that is false, or else of Ready.
	Reasons         map[string]map[string]string `json:"reasons,omitempty"`
	IdentityReasons map[string]string            `json:"identityReasons,omitempty"`
	Events          []Event                      `json:"events,omitempty"`
}

// Event is a Kubernetes Event on an object.
type Event struct {
	About  string `json:"about"` // such as AzureIdentityBinding web, or Pod b/web-0
	Reason string `json:"reason"`
	Says   string `json:"says,omitempty"`
}

// Count is a number, or at most one: 2 or "<=2".
type Count struct {
	N      int
	AtMost bool
}

// UnmarshalJSON reads 2 or "<=2".
func (c *Count) UnmarshalJSON(text []byte) error {
	var word string
	if json.Unmarshal(text, &word) != nil {
		word = string(text)
	}
	s, atMost := strings.CutPrefix(word, "<=")
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || n < 0 {
		return fmt.Errorf("%s is no count: want a number such as 2, or \"<=2\"", text)
	}
	*c = Count{N: n, AtMost: atMost}
	return nil
}

// Holds reports whether n is what the count says.
func (c Count) Holds(n int) bool { return n == c.N || c.AtMost && n < c.N }

func (c Count) String() string {
	if c.AtMost {
		return "at most " + strconv.Itoa(c.N)
	}
	return strconv.Itoa(c.N)
}

// Load reads all scenarios of a folder. A key that is not known is an error, and
// so is a story without words, or two of one name.
func Load(files fs.FS) ([]Scenario, error) {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return nil, fmt.Errorf("listing scenarios: %w", err)
	}
	var all []Scenario
	known := map[string]bool{}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("reading scenarios: %w", err)
		}
		list, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		for _, s := range list {
			if known[s.Name] {
				return nil, fmt.Errorf("reading %s: there are two scenarios %q", name, s.Name)
			}
			known[s.Name] = true
			s.File = name
			all = append(all, s)
		}
	}
	return all, nil
}

// Parse reads the scenarios of one file.
func Parse(text []byte) ([]Scenario, error) {
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, fmt.Errorf("reading YAML: %w", err)
	}
	var list []Scenario
	if err := model.Decode(asJSON, &list); err != nil {
		return nil, err
	}
	for _, s := range list {
		if err := s.validate(); err != nil {
			return nil, fmt.Errorf("scenario %q: %w", s.Name, err)
		}
	}
	return list, nil
}

func (s Scenario) validate() error {
	switch {
	case s.Name == "":
		return errors.New("it has no name")
	case s.Pins == "":
		return errors.New("it does not say what it pins")
	case len(s.Steps) == 0:
		return errors.New("nothing happens in it: give it a step, if only to expect something")
	case s.Only != "" && s.Only != Pure && s.Only != Real:
		return fmt.Errorf("only is %q: want pure or real", s.Only)
	case (s.Only == "") != (s.Because == ""):
		return errors.New("only and because go together")
	}
	return s.checkNames()
}
