package scenarios

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// checkNames finds misspelled names: of managed identities and of resources.
func (s Scenario) checkNames() error {
	azure := s.Given.Azure
	k := known{
		resources: slices.AppendSeq(slices.Collect(maps.Keys(azure.ScaleSets)), maps.Keys(azure.VMs)),
		managed:   slices.AppendSeq([]string{SystemAssigned}, maps.Keys(azure.Identities)),
	}
	for _, r := range slices.AppendSeq(slices.Collect(maps.Values(azure.ScaleSets)), maps.Values(azure.VMs)) {
		if err := errors.Join(k.identities(r.Attached...), k.identities(r.NullPrincipals...)); err != nil {
			return err
		}
	}
	for name, n := range s.Given.Nodes {
		if err := k.node(name, n); err != nil {
			return err
		}
	}
	for i, step := range s.Steps {
		if err := k.step(step); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// known are the names that a story gives.
type known struct {
	resources, managed []string
}

func (k known) identities(names ...string) error { return check("identity", k.managed, names) }

func (k known) resource(names ...string) error { return check("resource", k.resources, names) }

func check(what string, known, names []string) error {
	for _, name := range names {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%s %q is not given: there are %v", what, name, known)
		}
	}
	return nil
}

// node checks where a node is; one that the cloud provider has not met is nowhere.
func (k known) node(name string, n Node) error {
	switch {
	case n.Of != "" && n.ProviderID != "":
		return fmt.Errorf("node %q has both of and providerID", name)
	case n.Of != "":
		return k.resource(n.Of)
	}
	return nil
}

func (k known) step(step Step) error {
	var errs []error
	for _, e := range step.Do {
		errs = append(errs, k.edit(e))
	}
	e := step.Expect
	errs = append(errs, k.attached(e.Azure), k.attached(e.Owned), k.attached(e.NullPrincipals))
	return errors.Join(append(errs, k.resource(slices.Collect(maps.Keys(e.Patches))...))...)
}

func (k known) edit(e Edit) error {
	errs := []error{
		k.attached(e.Attach), k.attached(e.Detach), k.identities(e.Recreate...), k.identities(e.Make...), k.identities(e.Cure...),
		k.resource(e.Deleting...),
	}
	for name, n := range e.Nodes {
		errs = append(errs, k.node(name, n))
	}
	if e.Fault != nil {
		errs = append(errs, k.resource(e.Fault.Resource))
	}
	if e.Install != nil && !e.Restart {
		errs = append(errs, errors.New("install without restart"))
	}
	return errors.Join(errs...)
}

// attached checks identities on resources.
func (k known) attached(on map[string][]string) error {
	var errs []error
	for name, ids := range on {
		errs = append(errs, k.resource(name), k.identities(ids...))
	}
	return errors.Join(errs...)
}

// NeedsItsOwn reports whether the story cannot share a controller with others.
func (s Scenario) NeedsItsOwn() bool {
	return s.Install != Install{} || len(s.Given.Old) > 0 || slices.ContainsFunc(s.Steps, func(step Step) bool {
		return slices.ContainsFunc(step.Do, func(e Edit) bool { return e.Restart })
	})
}
