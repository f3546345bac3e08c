package attachment

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// reconcileNode says on the assignments of a node why nothing can be attached
// for them, where the node is no virtual machine of Azure's. For all other nodes
// the resource's own reconciliation speaks.
func (r *Reconciler) reconcileNode(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	if err := r.WaitAdopted(ctx); err != nil {
		return reconcile.Result{}, err
	}
	node, err := r.lookup.Node(ctx, request.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	reason, message := unplaced(request.Name, node)
	if reason == "" {
		return reconcile.Result{}, nil
	}
	assignments, err := r.lookup.AssignmentsOn(ctx, request.Name)
	failures := []error{err}
	for _, assignment := range assignments {
		if _, needed := kube.ManagedIdentity(assignment); needed {
			failures = append(failures, r.report.Say(ctx, assignment, reason, message))
		}
	}
	err = errors.Join(failures...)
	if err != nil && outdated(err) {
		return reconcile.Result{RequeueAfter: cacheLag}, nil
	}
	return reconcile.Result{}, err
}

// unplaced says why no identity can be attached for a node; the reason is empty
// if one can. A nil node does not exist.
func unplaced(name string, node *corev1.Node) (v1.Reason, string) {
	if node == nil {
		return v1.ReasonNodeNotFound, fmt.Sprintf("node %s does not exist", name)
	}
	if _, err := compute.ParseProviderID(node.Spec.ProviderID); err != nil {
		return v1.ReasonUnsupportedNode, fmt.Sprintf("node %s cannot be served: %v", name, err)
	}
	return "", ""
}

// unplacedNode is the node of an assignment that nothing can be attached for. A
// node that ceases to be a virtual machine of Azure's has an event of its own.
func (r *Reconciler) unplacedNode(ctx context.Context, a *v1.AzureAssignedIdentity) []reconcile.Request {
	name := a.Spec.NodeName
	if name == "" {
		return nil
	}
	if node, err := r.lookup.Node(ctx, name); err == nil {
		if reason, _ := unplaced(name, node); reason == "" {
			return nil
		}
	}
	return []reconcile.Request{kube.Request(identity.Key{Name: name})}
}

// nodeMoved drops the many updates of a node that change nothing here.
func nodeMoved() predicate.TypedPredicate[*corev1.Node] {
	return predicate.TypedFuncs[*corev1.Node]{UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Node]) bool {
		return e.ObjectOld.Spec.ProviderID != e.ObjectNew.Spec.ProviderID
	}}
}
