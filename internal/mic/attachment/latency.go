package attachment

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// tell returns what measures how long an assignment took; nil if nobody wants to
// know.
func tell(lookup kube.Lookup, o Options) func(context.Context, *v1.AzureAssignedIdentity) {
	if o.Assigned == nil {
		return nil
	}
	return func(ctx context.Context, a *v1.AzureAssignedIdentity) {
		now := o.Now()
		var waited time.Duration
		pod, err := lookup.Pod(ctx, kube.PodOf(a))
		if err == nil && pod != nil {
			waited = since(now, scheduled(pod))
		}
		o.Assigned(since(now, a.CreationTimestamp.Time), waited)
	}
}

// scheduled returns when the pod was bound to its node; zero if it does not say.
func scheduled(pod *corev1.Pod) time.Time {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

func since(now, then time.Time) time.Duration {
	if then.IsZero() {
		return 0
	}
	return max(0, now.Sub(then))
}
