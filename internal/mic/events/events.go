// Package events says on Kubernetes objects what became of them, once for each
// thing that there is to say.
//
// It must not decide what to say, and nothing may depend on an Event being
// written.
package events

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/lru"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Component is the source of every Event, as dashboards know it.
const Component = "aadpodidentity.k8s.io"

// The reasons that dashboards know, on an AzureIdentityBinding and, the last, on
// an AzureAssignedIdentity. Every other Event has a [v1.Reason].
const (
	BindingApplied     = "binding applied"
	BindingApplyError  = "binding apply error"
	BindingRemoved     = "binding removed"
	BindingRemoveError = "binding remove error"
	StatusUpdateError  = "status update error"
)

// remembered is how many things said are kept, so as not to say them again.
const remembered = 8192

// Recorder writes Events. Its methods never block on the API server.
type Recorder struct {
	recorder record.EventRecorder
	said     *lru.Cache
}

// thing is what was spoken of: an object, for a subject.
type thing struct {
	object  types.UID
	subject string
}

// New returns a Recorder that writes until ctx ends.
func New(ctx context.Context, config *rest.Config, scheme *runtime.Scheme) (*Recorder, error) {
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to write events: %w", err)
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx), record.WithCorrelatorOptions(record.CorrelatorOptions{SpamKeyFunc: apart}))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: clients.CoreV1().Events("")})
	context.AfterFunc(ctx, broadcaster.Shutdown)
	return &Recorder{
		recorder: broadcaster.NewRecorder(scheme, corev1.EventSource{Component: Component}),
		said:     lru.New(remembered),
	}, nil
}

// apart counts an object's warnings and its good news for themselves: a binding
// that was applied for many pods must still be able to say what is wrong.
func apart(e *corev1.Event) string {
	o := e.InvolvedObject
	return strings.Join([]string{o.Kind, o.Namespace, o.Name, string(o.UID), e.Type}, "/")
}

// Normal says that something went well.
func (r *Recorder) Normal(object *corev1.ObjectReference, reason, message string) {
	r.recorder.Event(object, corev1.EventTypeNormal, reason, message)
}

// Warn says what is wrong with an object, unless the same was the last thing
// said of it for the subject, such as a pod; the subject may be empty. After a
// restart it is said again.
func (r *Recorder) Warn(object *corev1.ObjectReference, subject, reason, message string) {
	key := thing{object: object.UID, subject: subject}
	what := reason + "\x00" + message
	if last, ok := r.said.Get(key); ok && last == what {
		return
	}
	r.said.Add(key, what)
	r.recorder.Event(object, corev1.EventTypeWarning, reason, message)
}

// Forget lets the next Warn for the object and subject through.
func (r *Recorder) Forget(object types.UID, subject string) {
	r.said.Remove(thing{object: object, subject: subject})
}

// Binding refers to a binding so that `kubectl describe` finds the Event.
func Binding(b *v1.AzureIdentityBinding) *corev1.ObjectReference {
	return reference("AzureIdentityBinding", b.Namespace, b.Name, b.UID)
}

// Identity refers to an AzureIdentity.
func Identity(i *v1.AzureIdentity) *corev1.ObjectReference {
	return reference("AzureIdentity", i.Namespace, i.Name, i.UID)
}

// Assigned refers to an AzureAssignedIdentity.
func Assigned(a metav1.Object) *corev1.ObjectReference {
	return reference("AzureAssignedIdentity", a.GetNamespace(), a.GetName(), a.GetUID())
}

// Attachment refers to an AzureIdentityAttachment.
func Attachment(a *v1.AzureIdentityAttachment) *corev1.ObjectReference {
	return reference("AzureIdentityAttachment", a.Namespace, a.Name, a.UID)
}

// Pod refers to a pod.
func Pod(p *corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}

func reference(kind, namespace, name string, uid types.UID) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: kind, APIVersion: v1.GroupVersion.String(), Namespace: namespace, Name: name, UID: uid}
}
