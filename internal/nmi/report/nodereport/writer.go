package nodereport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Options configure a [Writer].
type Options struct {
	Config          *rest.Config
	Namespace, Node string
	// Facts finds out what to write.
	Facts func(context.Context) Facts
	// Look is how often that is done; zero is 10 seconds. Rest is the least time
	// between two writes; zero is 30 seconds.
	Look, Rest time.Duration
	// Wrote is told how a write went. Nil tells nobody.
	Wrote func(error)
}

// Writer writes the report of one node.
type Writer struct {
	options Options
	reports dynamic.ResourceInterface
	self    kubernetes.Interface

	last    *v1.AzureIdentityNodeReportStatus // what the report should say; nil before the first look
	written *v1.AzureIdentityNodeReportStatus // what the report says, if it is known
	node    *metav1.OwnerReference            // nil until it is known
}

const fieldManager = "nmi"

// New returns a writer that has asked nothing yet.
func New(options Options) (*Writer, error) {
	if options.Look == 0 {
		options.Look = 10 * time.Second
	}
	if options.Rest == 0 {
		options.Rest = 30 * time.Second
	}
	if options.Wrote == nil {
		options.Wrote = func(error) {}
	}
	reports, err := dynamic.NewForConfig(options.Config)
	if err != nil {
		return nil, fmt.Errorf("making a client for node reports: %w", err)
	}
	self, err := kubernetes.NewForConfig(options.Config)
	if err != nil {
		return nil, fmt.Errorf("making a client for node reports: %w", err)
	}
	return &Writer{
		options: options, self: self,
		reports: reports.Resource(v1.GroupVersion.WithResource("azureidentitynodereports")).Namespace(options.Namespace),
	}, nil
}

// Log returns what is told of writes and logs when they begin to fail.
func Log(log *slog.Logger) func(error) {
	failing := false
	return func(err error) {
		if err != nil && !failing {
			log.Warn("node report is not written", "error", err)
		}
		failing = err != nil
	}
}

// Run writes at first and when something changes, until ctx ends.
func (w *Writer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := w.options.Look
		if wrote, err := w.look(ctx); wrote && ctx.Err() == nil {
			w.options.Wrote(err)
			wait = w.options.Rest
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// look writes, if there is something new to say.
func (w *Writer) look(ctx context.Context) (wrote bool, err error) {
	facts := w.options.Facts(ctx)
	var before []metav1.Condition
	if w.written != nil {
		before = w.written.Conditions
	}
	status := Status(facts, before, time.Now())
	w.last = &status
	if w.written != nil && !differs(*w.written, status) {
		return false, nil
	}
	return true, w.write(ctx, status)
}

// End writes how the agent leaves its node, at once. [Writer.Run] must have
// returned.
func (w *Writer) End(ctx context.Context, end End) error {
	if w.last == nil {
		status := Status(w.options.Facts(ctx), nil, time.Now())
		w.last = &status
	}
	return w.write(ctx, Ended(*w.last, end, time.Now()))
}

func (w *Writer) write(ctx context.Context, status v1.AzureIdentityNodeReportStatus) error {
	if err := w.apply(ctx, status); err != nil {
		return fmt.Errorf("writing the report of node %s: %w", w.options.Node, err)
	}
	w.written = &status
	return nil
}

// apply sets the status, and makes the report if there is none.
func (w *Writer) apply(ctx context.Context, status v1.AzureIdentityNodeReportStatus) error {
	options := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
	object, err := w.object(status)
	if err != nil {
		return err
	}
	_, err = w.reports.ApplyStatus(ctx, w.options.Node, object, options)
	if !apierrors.IsNotFound(err) {
		return err
	}
	empty := object.DeepCopy()
	unstructured.RemoveNestedField(empty.Object, "status")
	if owner, err := w.owner(ctx); err == nil {
		empty.SetOwnerReferences([]metav1.OwnerReference{*owner})
	} else if !errors.Is(err, errNotBound) {
		return err
	}
	if _, err := w.reports.Apply(ctx, w.options.Node, empty, options); err != nil {
		return err
	}
	_, err = w.reports.ApplyStatus(ctx, w.options.Node, object, options)
	return err
}

func (w *Writer) object(status v1.AzureIdentityNodeReportStatus) (*unstructured.Unstructured, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
	if err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1.GroupVersion.String(), "kind": "AzureIdentityNodeReport",
		"metadata": map[string]any{"name": w.options.Node, "namespace": w.options.Namespace},
		"status":   fields,
	}}, nil
}

// What the API server says of a token that is bound to a pod.
const (
	nodeNameKey = "authentication.kubernetes.io/node-name"
	nodeUIDKey  = "authentication.kubernetes.io/node-uid"
)

// errNotBound: the token is bound to no pod of the node, or to one whose node has
// no object.
var errNotBound = errors.New("the token names no node")

// owner returns the node itself, with which the report goes. The agent may not
// read nodes; the API server tells everybody who he is.
func (w *Writer) owner(ctx context.Context) (*metav1.OwnerReference, error) {
	if w.node != nil {
		return w.node, nil
	}
	review, err := w.self.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("asking which node the token is of: %w", err)
	}
	extra := review.Status.UserInfo.Extra
	name, uid := extra[nodeNameKey], extra[nodeUIDKey]
	if len(name) != 1 || len(uid) != 1 || name[0] != w.options.Node {
		return nil, errNotBound
	}
	w.node = &metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: name[0], UID: types.UID(uid[0])}
	return w.node, nil
}
