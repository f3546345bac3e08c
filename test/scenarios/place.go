package scenarios

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

// What every place has in common.
const (
	MainSubscription    = "/subscriptions/11111111-2222-3333-4444-555555555555"
	OtherSubscription   = "/subscriptions/22222222-3333-4444-5555-666666666666"
	foreignSubscription = "/subscriptions/33333333-4444-5555-6666-777777777777"
	Tenant              = "0a0a0a0a-0000-4000-8000-00000000000a"
	// Controller is the controller's application.
	ControllerClientID = "aaaaaaaa-0000-4000-8000-000000000001"
	ControllerObjectID = "aaaaaaaa-0000-4000-8000-000000000002"
	defaultNamespace   = "a"
	// SystemAssigned is what the files call a resource's own identity.
	SystemAssigned = "system-assigned"
)

// World is the document of an Azure in which nothing is but the controller, and
// its rights on two subscriptions.
func World(secret model.Secret) model.Document {
	doc := model.Document{
		Tenant:       Tenant,
		Applications: []model.Application{{Name: "mic", ClientID: ControllerClientID, PrincipalID: ControllerObjectID, Secrets: []model.Secret{secret}}},
	}
	for _, scope := range []string{MainSubscription, OtherSubscription} {
		for _, role := range []string{"Virtual Machine Contributor", "Managed Identity Operator"} {
			doc.RoleAssignments = append(doc.RoleAssignments, model.RoleAssignment{Principal: ControllerObjectID, Role: role, Scope: scope})
		}
	}
	return doc
}

// Place is a story in a world of others: it gives its short names their full
// ones, which no other place has.
type Place struct {
	Scenario
	// Prefix goes before whatever is the whole cluster's or Azure's.
	Prefix string
}

// NewPlace returns a place of its own for a story.
func NewPlace(s Scenario) Place {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(s.Name)) // a hash takes anything
	return Place{Scenario: s, Prefix: fmt.Sprintf("s%08x-", sum.Sum32())}
}

// Namespace is the full name of a namespace.
func (p Place) Namespace(short string) string {
	if short == "" {
		short = defaultNamespace
	}
	return p.Prefix + p.Expand(short)
}

// Key is the short name of a namespaced object, as the files write it.
func (p Place) Key(namespace, name string) string {
	if short := strings.TrimPrefix(namespace, p.Prefix); short != defaultNamespace {
		return short + "/" + name
	}
	return name
}

// Split is a short name's namespace, in full, and name.
func (p Place) Split(key string) (namespace, name string) {
	if short, name, ok := strings.Cut(key, "/"); ok {
		return p.Namespace(short), p.Expand(name)
	}
	return p.Namespace(""), p.Expand(key)
}

// NodeName is the full name of a node.
func (p Place) NodeName(short string) string {
	if short == "" {
		return ""
	}
	return p.Prefix + short
}

// Expand puts namespaces' full names in the place of NS(x).
func (p Place) Expand(text string) string {
	for {
		before, rest, ok := strings.Cut(text, "NS(")
		short, after, closed := strings.Cut(rest, ")")
		if !ok || !closed {
			return text
		}
		text = before + p.Namespace(short) + after
	}
}

// ManagedID is the ARM ID of a managed identity.
func (p Place) ManagedID(name string) string {
	subscription := MainSubscription
	if p.Given.Azure.Identities[name].Forbidden {
		subscription = foreignSubscription
	}
	return subscription + "/resourceGroups/Apps_(" + p.Prefix + ").v1/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
}

// ManagedName is the short name of a managed identity by its ARM ID, or the ID.
func (p Place) ManagedName(id string) string {
	for name := range p.Given.Azure.Identities {
		if strings.EqualFold(id, p.ManagedID(name)) {
			return name
		}
	}
	return id
}

// ClientID is the client ID of a managed identity as it was first made.
func (p Place) ClientID(name string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("client of "+p.ManagedID(name))).String()
}

// ResourceID is the ARM ID of a scale set or virtual machine.
func (p Place) ResourceID(short string) string {
	r, kind := p.Given.Azure.ScaleSets[short], "virtualMachineScaleSets"
	if vm, ok := p.Given.Azure.VMs[short]; ok {
		r, kind = vm, "virtualMachines"
	}
	subscription, group, name := MainSubscription, "nodes", short
	if r.Subscription == "other" {
		subscription = OtherSubscription
	}
	if r.Group != "" {
		group = r.Group
	}
	if r.Name != "" {
		name = r.Name
	}
	return subscription + "/resourceGroups/MC_" + p.Prefix + group + "/providers/Microsoft.Compute/" + kind + "/" + name
}

// IsVM reports whether a resource is a virtual machine.
func (p Place) IsVM(short string) bool {
	_, ok := p.Given.Azure.VMs[short]
	return ok
}

// Document is what there is in Azure.
func (p Place) Document() model.Document {
	var doc model.Document
	for name, m := range p.Given.Azure.Identities {
		if !m.Missing {
			doc.Identities = append(doc.Identities, p.Managed(name))
		}
		if m.Poison != nil {
			doc.Poison = append(doc.Poison, p.poison(name))
		}
	}
	for name, r := range p.Given.Azure.ScaleSets {
		doc.ScaleSets = append(doc.ScaleSets, p.resource(name, r))
	}
	for name, r := range p.Given.Azure.VMs {
		doc.VirtualMachines = append(doc.VirtualMachines, p.resource(name, r))
	}
	return doc
}

// Managed is a managed identity as it is first made.
func (p Place) Managed(name string) model.Identity {
	return model.Identity{ID: p.ManagedID(name), ClientID: p.ClientID(name)}
}

func (p Place) poison(name string) poison.Poison {
	out := *p.Given.Azure.Identities[name].Poison
	out.Identity = p.ManagedID(name)
	return out
}

func (p Place) resource(short string, r Resource) model.Resource {
	out := model.Resource{ID: p.ResourceID(short)}
	for _, name := range r.Attached {
		out.UserAssigned = append(out.UserAssigned, p.ManagedID(name))
	}
	for _, name := range r.NullPrincipals {
		out.UserAssigned = append(out.UserAssigned, p.ManagedID(name))
		out.NullPrincipals = append(out.NullPrincipals, p.ManagedID(name))
	}
	if r.SystemAssigned {
		out.SystemAssigned = &model.SystemAssigned{}
	}
	if r.Flexible {
		out.OrchestrationMode = "Flexible"
	}
	if r.In != "" {
		out.ScaleSet = p.ResourceID(r.In)
	}
	return out
}

// Attachment names an identity on a resource.
func (p Place) Attachment(on, name string) model.Attachment {
	a := model.Attachment{Identity: p.ManagedID(name)}
	if p.IsVM(on) {
		a.VM = p.ResourceID(on)
	} else {
		a.ScaleSet = p.ResourceID(on)
	}
	return a
}

// Node is a node of the cluster.
func (p Place) Node(short string, n Node) *corev1.Node {
	id := n.ProviderID
	if n.Of != "" {
		id = "azure://" + p.ResourceID(n.Of)
		if !p.IsVM(n.Of) {
			id += "/virtualMachines/" + short
		}
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: p.NodeName(short)}, Spec: corev1.NodeSpec{ProviderID: cased(id, n.Casing)}}
}

// Identity is an AzureIdentity.
func (p Place) Identity(i Identity) *v1.AzureIdentity {
	azure := i.Azure
	if azure == "" {
		azure = i.Name
	}
	object := &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace(i.Namespace), Name: i.Name, Labels: i.Labels, Annotations: map[string]string{}},
		Spec: v1.AzureIdentitySpec{
			Type: v1.IdentityType(i.Type), ResourceID: cased(p.ManagedID(azure), i.Casing), ClientID: cased(p.ClientID(azure), i.Casing),
		},
	}
	maps.Copy(object.Annotations, i.Annotations)
	if i.Namespaced {
		object.Annotations[v1.BehaviorAnnotation] = v1.BehaviorNamespaced
	}
	if i.ResourceID != "" {
		object.Spec.ResourceID = i.ResourceID
	}
	if object.Spec.Type != v1.UserAssignedManagedIdentity {
		object.Spec.ResourceID, object.Spec.TenantID = "", Tenant
		object.Spec.ClientPassword = &v1.SecretReference{Namespace: object.Namespace, Name: i.Name}
	}
	return object
}

// Binding is an AzureIdentityBinding.
func (p Place) Binding(b Binding) *v1.AzureIdentityBinding {
	name, selector := b.Name, b.Selector
	if name == "" {
		name = b.Identity
	}
	if selector == "" {
		selector = b.Identity
	}
	return &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace(b.Namespace), Name: name, Labels: b.Labels},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: b.Identity, Selector: p.Prefix + selector},
	}
}

// Pod is a pod, as it is once its phase is known.
func (p Place) Pod(pod Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace(pod.Namespace), Name: p.Expand(pod.Name)},
		Spec:       corev1.PodSpec{NodeName: p.NodeName(pod.Node), Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPhase(pod.Phase)},
	}
	if pod.Selector != "" {
		out.Labels = map[string]string{v1.PodLabel: p.Prefix + pod.Selector}
	}
	return out
}

// OldAssignment is one of the archived controller's, with its names, its
// finalizer and its label, and without conditions.
func (p Place) OldAssignment(o Old) *v1.AzureAssignedIdentity {
	identity := p.Identity(p.Given.identity(o.Identity))
	identity.TypeMeta = metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureIdentity"}
	binding := p.Binding(p.Given.binding(o.Binding, o.Identity))
	binding.TypeMeta = metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureIdentityBinding"}
	namespace, pod := p.Split(o.Pod)
	out := &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: v1.DefaultAssignedIdentityNamespace, Name: pod + "-" + namespace + "-" + identity.Name,
			Labels: map[string]string{v1.NodeNameLabel: p.NodeName(o.Node)}, Finalizers: []string{v1.AssignedIdentityFinalizer},
		},
		Spec:   v1.AzureAssignedIdentitySpec{AzureIdentityRef: identity, AzureBindingRef: binding, Pod: pod, PodNamespace: namespace, NodeName: p.NodeName(o.Node), Replicas: new(int32(1))},
		Status: v1.AzureAssignedIdentityStatus{Status: o.Status, AvailableReplicas: 1},
	}
	if o.Status == "none" {
		out.Status.Status = v1.AssignedIDLegacy
	}
	return out
}

func (o Objects) identity(name string) Identity {
	at := slices.IndexFunc(o.Identities, func(i Identity) bool { return i.Name == name })
	if at < 0 {
		return Identity{Name: name}
	}
	return o.Identities[at]
}

func (o Objects) binding(name, identity string) Binding {
	at := slices.IndexFunc(o.Bindings, func(b Binding) bool { return b.Name == name || name == "" && b.Identity == identity })
	if at < 0 {
		return Binding{Name: name, Identity: identity}
	}
	return o.Bindings[at]
}

// cased writes an ID in another case.
func cased(s, casing string) string {
	switch casing {
	case "upper":
		return strings.ToUpper(s)
	case "lower":
		return strings.ToLower(s)
	case "mixed":
		upper := false
		return strings.Map(func(r rune) rune {
			if upper = !upper; upper {
				return unicode.ToUpper(r)
			}
			return unicode.ToLower(r)
		}, s)
	}
	return s
}
