package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// legacyRecord is what the old controller's client library writes to the
// annotation, and reads.
type legacyRecord struct {
	HolderIdentity       string      `json:"holderIdentity"`
	LeaseDurationSeconds int         `json:"leaseDurationSeconds"`
	AcquireTime          metav1.Time `json:"acquireTime"`
	RenewTime            metav1.Time `json:"renewTime"`
	LeaderTransitions    int         `json:"leaderTransitions"`
}

// legacyLock is the old controller's lock: an annotation of an Endpoints object.
// Client libraries no longer have it.
type legacyLock struct {
	client typedcorev1.EndpointsGetter
	meta   metav1.ObjectMeta
	seen   *corev1.Endpoints //nolint:staticcheck // the old controller's kind; nil: there is none
}

// get returns the record, and its text. Without an object or annotation nobody
// holds the lock. An annotation that is no record is an error: only people can
// say what it means.
func (l *legacyLock) get(ctx context.Context) (resourcelock.LeaderElectionRecord, string, error) {
	object, err := l.client.Endpoints(l.meta.Namespace).Get(ctx, l.meta.Name, metav1.GetOptions{})
	if absent(err) {
		l.seen = nil
		return resourcelock.LeaderElectionRecord{}, "", nil
	}
	if err != nil {
		return resourcelock.LeaderElectionRecord{}, "", fmt.Errorf("reading Endpoints %s/%s: %w", l.meta.Namespace, l.meta.Name, err)
	}
	l.seen = object
	text := object.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]
	if text == "" {
		return resourcelock.LeaderElectionRecord{}, "", nil
	}
	var r legacyRecord
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return resourcelock.LeaderElectionRecord{}, "", fmt.Errorf("reading annotation %s of Endpoints %s/%s: %w (remove it if no old controller runs)", resourcelock.LeaderElectionRecordAnnotationKey, l.meta.Namespace, l.meta.Name, err)
	}
	return resourcelock.LeaderElectionRecord{
		HolderIdentity: r.HolderIdentity, LeaseDurationSeconds: r.LeaseDurationSeconds,
		AcquireTime: r.AcquireTime, RenewTime: r.RenewTime, LeaderTransitions: r.LeaderTransitions,
	}, text, nil
}

// put writes the record over the one that was seen last; one that somebody else
// has written since is an error.
func (l *legacyLock) put(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	text, err := json.Marshal(legacyRecord{
		HolderIdentity: record.HolderIdentity, LeaseDurationSeconds: record.LeaseDurationSeconds,
		AcquireTime: record.AcquireTime, RenewTime: record.RenewTime, LeaderTransitions: record.LeaderTransitions,
	})
	if err != nil {
		return fmt.Errorf("preparing the old lock's record: %w", err)
	}
	client := l.client.Endpoints(l.meta.Namespace)
	if l.seen == nil {
		object := &corev1.Endpoints{ObjectMeta: *l.meta.DeepCopy()} //nolint:staticcheck // the old controller's kind
		object.Annotations = map[string]string{resourcelock.LeaderElectionRecordAnnotationKey: string(text)}
		object, err = client.Create(ctx, object, metav1.CreateOptions{})
		return l.keep(object, err)
	}
	object := l.seen.DeepCopy()
	if object.Annotations == nil {
		object.Annotations = map[string]string{}
	}
	object.Annotations[resourcelock.LeaderElectionRecordAnnotationKey] = string(text)
	object, err = client.Update(ctx, object, metav1.UpdateOptions{})
	return l.keep(object, err)
}

//nolint:staticcheck // the old controller's kind
func (l *legacyLock) keep(object *corev1.Endpoints, err error) error {
	if err != nil {
		return fmt.Errorf("writing Endpoints %s/%s: %w", l.meta.Namespace, l.meta.Name, err)
	}
	if object == nil {
		return errors.New("writing the old lock: the API server returned nothing")
	}
	l.seen = object
	return nil
}
