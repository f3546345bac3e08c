package mic

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
)

// statusWriter is a client that tells of assignments whose state could not be
// written, as the old controller did. A conflict is none: it is tried again.
type statusWriter struct {
	client.Client
	events *events.Recorder
	failed func()
}

// Patch patches, and tells if that fails.
func (w statusWriter) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	err := w.Client.Patch(ctx, object, patch, options...)
	if err == nil || object.GetObjectKind().GroupVersionKind() != v1.GroupVersion.WithKind(report.AssignmentKind) || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || errors.Is(err, context.Canceled) {
		return err
	}
	w.failed()
	w.events.Warn(events.Assigned(object), "", events.StatusUpdateError, err.Error())
	return err
}
