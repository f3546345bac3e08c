package scenarios_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/test/scenarios"
)

// pure plays a story on values: assignment.Compute and plan.Compute, one after the
// other until neither changes anything, with the simulator's state for Azure.
type pure struct {
	scenarios.Place
	t       *testing.T
	install scenarios.Install
	azure   *state.State
	now     time.Time
	uid     int

	nodes       map[string]string // by name, the providerID
	pods        map[identity.Key]*corev1.Pod
	identities  map[identity.Key]*v1.AzureIdentity
	bindings    map[identity.Key]*v1.AzureIdentityBinding
	assignments map[identity.Key]*v1.AzureAssignedIdentity
	resources   map[compute.Ref]*resource

	did did
}

// resource is what the controller knows of a scale set or virtual machine.
type resource struct {
	records     []v1.OwnedIdentity
	quarantine  quarantine.State
	unconfirmed map[armid.ID][]string
	stuck       bool // ARM refuses all; until something happens
}

// did counts what was done in a step.
type did struct {
	created, deleted, rewritten int
	patches                     map[string]int // by the resource's folded ID
}

func newPure(t *testing.T, s scenarios.Scenario) *pure {
	t.Helper()
	p := &pure{
		t: t, Place: scenarios.NewPlace(s), install: s.Install, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		nodes: map[string]string{}, pods: map[identity.Key]*corev1.Pod{}, identities: map[identity.Key]*v1.AzureIdentity{},
		bindings: map[identity.Key]*v1.AzureIdentityBinding{}, assignments: map[identity.Key]*v1.AzureAssignedIdentity{},
		resources: map[compute.Ref]*resource{},
	}
	p.azure = state.New(state.Options{Now: func() time.Time { return p.now }})
	p.must(p.azure.Replace(scenarios.World("a secret")))
	_, err := p.azure.Add(p.Document())
	p.must(err)
	p.join(s.Given.Nodes)
	p.put(&s.Given.Objects)
	for _, o := range s.Given.Old {
		old := p.OldAssignment(o)
		old.UID = p.nextUID()
		p.assignments[keyOf(old)] = old
	}
	p.inherit()
	return p
}

func (p *pure) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pure) nextUID() types.UID {
	p.uid++
	return types.UID(fmt.Sprint("uid-", p.uid))
}

type named interface {
	GetNamespace() string
	GetName() string
}

func keyOf(o named) identity.Key { return identity.Key{Namespace: o.GetNamespace(), Name: o.GetName()} }

func (p *pure) join(nodes map[string]scenarios.Node) {
	for name, n := range nodes {
		node := p.Node(name, n)
		p.nodes[node.Name] = node.Spec.ProviderID
	}
}

// put creates or edits objects.
func (p *pure) put(o *scenarios.Objects) {
	if o == nil {
		return
	}
	for _, i := range o.Identities {
		object := p.Identity(i)
		object.UID, object.Generation = p.nextUID(), 1
		if before, ok := p.identities[keyOf(object)]; ok {
			object.UID, object.Generation = before.UID, before.Generation
			if fmt.Sprint(before.Spec) != fmt.Sprint(object.Spec) {
				object.Generation++
			}
		}
		object.ResourceVersion = string(p.nextUID())
		p.identities[keyOf(object)] = object
	}
	for _, b := range o.Bindings {
		object := p.Binding(b)
		object.ResourceVersion = string(p.nextUID())
		p.bindings[keyOf(object)] = object
	}
	for _, pod := range o.Pods {
		object := p.Pod(pod)
		p.pods[keyOf(object)] = object
	}
}

func (p *pure) remove(n *scenarios.Names) {
	if n == nil {
		return
	}
	key := func(short string) identity.Key {
		namespace, name := p.Split(short)
		return identity.Key{Namespace: namespace, Name: name}
	}
	for _, name := range n.Identities {
		delete(p.identities, key(name))
	}
	for _, name := range n.Bindings {
		delete(p.bindings, key(name))
	}
	for _, name := range n.Pods {
		delete(p.pods, key(name))
	}
	for _, name := range n.Nodes {
		delete(p.nodes, p.NodeName(name))
	}
}

func (p *pure) edit(e scenarios.Edit) {
	p.t.Helper()
	p.put(e.Create)
	p.put(e.Replace)
	p.remove(e.Delete)
	p.join(e.Nodes)
	p.must(inAzure(p.azure, p.Place, e))
	if e.Restart {
		if e.Install != nil {
			p.install = *e.Install
		}
		p.inherit()
	}
	for _, r := range p.resources {
		r.stuck = false
	}
}

// inAzure does what others do in Azure.
func inAzure(azure *state.State, p scenarios.Place, e scenarios.Edit) error {
	var errs []error
	for _, change := range []struct {
		all map[string][]string
		do  func(model.Attachment) (model.Resource, error)
	}{{e.Attach, azure.Attach}, {e.Detach, azure.Detach}} {
		for on, names := range change.all {
			for _, name := range names {
				_, err := change.do(p.Attachment(on, name))
				errs = append(errs, err)
			}
		}
	}
	for _, name := range e.Recreate {
		errs = append(errs, azure.Delete(model.Deletion{Identity: p.ManagedID(name)}))
		_, err := azure.Add(model.Document{Identities: []model.Identity{{ID: p.ManagedID(name)}}})
		errs = append(errs, err)
	}
	for _, name := range e.Make {
		_, err := azure.Add(model.Document{Identities: []model.Identity{p.Managed(name)}})
		errs = append(errs, err)
	}
	for _, name := range e.Cure {
		errs = append(errs, azure.Cure(p.ManagedID(name)))
	}
	for _, on := range e.Deleting {
		a := p.Attachment(on, "")
		errs = append(errs, azure.Delete(model.Deletion{ScaleSet: a.ScaleSet, VM: a.VM, Begin: true}))
	}
	return errors.Join(errs...)
}

// inherit takes over from the archived controller, as the new one does first.
func (p *pure) inherit() {
	for _, a := range p.assignments {
		ref, ok := p.refOf(a.Spec.NodeName)
		if !ok {
			continue
		}
		r := p.resource(ref)
		if id, says := plan.Inherited(a, len(r.records) > 0); says {
			r.records = plan.Inherit(r.records, []armid.ID{id})
		}
	}
}

func (p *pure) refOf(node string) (compute.Ref, bool) {
	ref, err := compute.ParseProviderID(p.nodes[node])
	return ref, err == nil
}

func (p *pure) resource(ref compute.Ref) *resource {
	r, ok := p.resources[ref]
	if !ok {
		r = &resource{}
		p.resources[ref] = r
	}
	return r
}

// converge lets the rules act until they have nothing left to do.
func (p *pure) converge() {
	p.t.Helper()
	for range 500 {
		changed := p.assign()
		changed = p.attach() || changed
		if !changed {
			return
		}
	}
	p.t.Fatal("the rules never come to rest")
}

// Bindings and Identity make the objects a [binding.Catalog].
type catalog struct{ *pure }

func (c catalog) Bindings(string) []*v1.AzureIdentityBinding {
	return slices.Collect(maps.Values(c.bindings))
}

func (c catalog) Identity(key identity.Key) *v1.AzureIdentity { return c.identities[key] }

// assign brings the assignments of every pod up to date.
func (p *pure) assign() (changed bool) {
	keys := map[identity.Key]bool{}
	for key := range p.pods {
		keys[key] = true
	}
	for _, a := range p.assignments {
		keys[podOf(a)] = true
	}
	for _, key := range slices.SortedFunc(maps.Keys(keys), func(a, b identity.Key) int { return cmp.Compare(a.String(), b.String()) }) {
		changes := assignment.Compute(p.snapshotOf(key))
		p.write(changes)
		changed = changed || !changes.Empty()
	}
	return changed
}

func podOf(a *v1.AzureAssignedIdentity) identity.Key {
	return identity.Key{Namespace: a.Spec.PodNamespace, Name: a.Spec.Pod}
}

func (p *pure) snapshotOf(key identity.Key) assignment.Snapshot {
	s := assignment.Snapshot{Pod: key, Namespaced: p.install.Namespaced, Now: p.now, Taken: func(namespace, name string) bool {
		a, ok := p.assignments[identity.Key{Namespace: namespace, Name: name}]
		return ok && podOf(a) != key
	}}
	for _, a := range p.assignments {
		if podOf(a) == key {
			s.Current = append(s.Current, a)
		}
	}
	pod, ok := p.pods[key]
	if !ok || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return s
	}
	s.Node = pod.Spec.NodeName
	asked := binding.Pod{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels}
	s.Grants = binding.Decide(asked, catalog{p}, binding.Policy{Namespaced: p.install.Namespaced}).Grants
	return s
}

func (p *pure) write(c assignment.Changes) {
	for _, a := range c.Create {
		a.UID = p.nextUID()
		p.assignments[keyOf(a)] = a
		p.did.created++
	}
	for _, u := range c.Update {
		p.assignments[keyOf(u.To)] = u.To
		if isRewritten(u.From, u.To) {
			p.did.rewritten++
		}
	}
	for _, a := range c.Delete {
		delete(p.assignments, keyOf(a))
		p.did.deleted++
	}
}

// attach brings every resource to what its pods need, one request at a time.
func (p *pure) attach() (changed bool) {
	wanted := map[compute.Ref][]armid.ID{}
	for _, a := range p.assignments {
		ref, ok := p.refOf(a.Spec.NodeName)
		id, needed := kube.ManagedIdentity(a)
		if ok && needed {
			wanted[ref] = append(wanted[ref], id)
			p.resource(ref)
		}
	}
	for _, ref := range slices.SortedFunc(maps.Keys(p.resources), func(a, b compute.Ref) int { return a.ID.Compare(b.ID) }) {
		r := p.resources[ref]
		if r.stuck || len(wanted[ref])+len(r.records) == 0 {
			continue
		}
		changed = p.bring(ref, r, wanted[ref]) || changed
	}
	return changed
}

// bring makes one pass over a resource and reports whether it changed anything.
func (p *pure) bring(ref compute.Ref, r *resource, wanted []armid.ID) bool {
	shown, err := p.azure.Resource(scenarios.ControllerObjectID, ref.ID)
	if err != nil {
		r.stuck = true
		return false
	}
	planned := plan.Compute(plan.Snapshot{
		Seen: seen(shown), Wanted: wanted, Named: p.named(slices.AppendSeq(slices.Clone(wanted), maps.Keys(r.quarantine.Refused))), Quarantine: r.quarantine, Unconfirmed: r.unconfirmed, Records: r.records, Now: p.now,
	}, p.policy())
	changed := p.say(ref, planned)
	r.quarantine = planned.Quarantine
	if planned.Patch == nil {
		r.unconfirmed, r.records = planned.Unconfirmed, planned.Records
		return changed
	}
	p.did.patches[ref.ID.String()]++
	r.records = planned.Before
	if refused := p.send(ref, shown, planned.Patch); refused != nil {
		r.records = planned.Undo()
		p.refuse(r, planned.Patch.Add, refused)
		return true
	}
	r.quarantine, r.unconfirmed, r.records = r.quarantine.Accept(), planned.UnconfirmedAfter, planned.After
	return true
}

func seen(r state.Resource) compute.Identities {
	kind, _ := compute.ParseIdentityType(r.Type)
	out := compute.Identities{Type: kind, Present: map[armid.ID]string{}, ETag: r.ETag, Updating: r.ProvisioningState == state.Updating}
	for _, i := range r.User {
		out.Present[i.ID] = i.ClientID
	}
	return out
}

// named is what the AzureIdentities say of managed identities.
func (p *pure) named(ids []armid.ID) map[armid.ID]plan.Naming {
	out := map[armid.ID]plan.Naming{}
	for _, object := range p.identities {
		principal, err := identity.FromObject(object)
		if err != nil || !principal.Attached() || !slices.Contains(ids, principal.ResourceID) {
			continue
		}
		n := out[principal.ResourceID]
		n.Objects = append(n.Objects, fmt.Sprintf("%s/%d", object.UID, object.Generation))
		n.ClientIDs = append(n.ClientIDs, strings.ToLower(object.Spec.ClientID))
		slices.Sort(n.Objects)
		slices.Sort(n.ClientIDs)
		out[principal.ResourceID] = plan.Naming{Objects: n.Objects, ClientIDs: slices.Compact(n.ClientIDs)}
	}
	return out
}

func (p *pure) policy() plan.Policy {
	policy := plan.Policy{IDs: map[armid.ID]bool{}, ClientIDs: map[identity.ClientID]bool{}}
	for name, m := range p.Given.Azure.Identities {
		if m.Immutable {
			id, err := identity.ParseClientID(strings.ToUpper(p.ClientID(name)))
			p.must(err)
			policy.ClientIDs[id] = true
		}
	}
	return policy
}

// say writes the statuses of a resource's assignments.
func (p *pure) say(ref compute.Ref, planned plan.Plan) (changed bool) {
	for _, a := range p.assignments {
		at, ok := p.refOf(a.Spec.NodeName)
		id, needed := kube.ManagedIdentity(a)
		if !ok || !needed || at != ref {
			continue
		}
		status := v1.AssignedIDCreated
		if slices.Contains(planned.There, id) {
			status = v1.AssignedIDAssigned
		}
		if a.Status.Status != status {
			if a.Status.Status == v1.AssignedIDAssigned {
				p.did.rewritten++
			}
			a.Status.Status, changed = status, true
		}
	}
	return changed
}

// send sends a PATCH and waits for its operation. It returns ARM's refusal.
func (p *pure) send(ref compute.Ref, shown state.Resource, patch *compute.Patch) error {
	request := state.IdentityPatch{
		Principal: scenarios.ControllerObjectID, Resource: ref.ID, IfMatch: shown.ETag, Type: string(patch.Type),
		Add: map[armid.ID]string{}, Remove: map[armid.ID]string{},
	}
	for id, add := range patch.Body() {
		if add {
			request.Add[id] = id.String()
		} else {
			request.Remove[id] = id.String()
		}
	}
	_, started, err := p.azure.PatchIdentity(request)
	if err != nil {
		return err
	}
	ended, err := p.azure.Operation(started.Subscription, started.Location, started.ID)
	if err == nil && ended.Failure != nil {
		return &state.PoisonError{Refusal: *ended.Failure.Refusal}
	}
	return err
}

// refuse takes ARM's refusal in.
func (p *pure) refuse(r *resource, batch []armid.ID, refusal error) {
	names, isOfIdentities := refusedBy(refusal)
	if !isOfIdentities {
		r.stuck = true
		return
	}
	byID := p.named(batch)
	r.quarantine = r.quarantine.Refuse(quarantine.Failure{
		Batch: batch, Named: names, Reason: v1.ReasonIdentityRefused, Message: refusal.Error(),
		Identities: func(id armid.ID) []string { return byID[id].Objects }, Now: p.now,
	}, quarantine.Rules{Min: 30 * time.Second, Max: 10 * time.Minute, Random: func() float64 { return 0.5 }})
}

// refusedBy returns which identities ARM's refusal names, and whether it is about
// identities at all.
func refusedBy(refusal error) (names []armid.ID, isOfIdentities bool) {
	var ids []string
	if denied, ok := errors.AsType[*state.LinkedAuthorizationError](refusal); ok {
		ids, isOfIdentities = denied.IDs, true
	}
	if missing, ok := errors.AsType[*state.MissingIdentityError](refusal); ok {
		ids, isOfIdentities = missing.IDs, true
	}
	if poisoned, ok := errors.AsType[*state.PoisonError](refusal); ok {
		isOfIdentities = poisoned.Kind != poison.Throttled
		if poisoned.Names() != "" {
			ids = poisoned.IDs
		}
	}
	for _, s := range ids {
		if id, err := armid.Parse(s); err == nil {
			names = append(names, id)
		}
	}
	return names, isOfIdentities
}
