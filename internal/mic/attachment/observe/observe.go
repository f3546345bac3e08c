// Package observe reads what one virtual machine or scale set should carry and
// what the controller has recorded of it.
//
// It only reads, and it must not judge what it reads.
package observe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// Observer reads the cache for assignments and the API server itself for the
// record: a record that is out of date would lose what it owns.
type Observer struct {
	Lookup kube.Lookup
	Live   client.Reader
	// Namespace is the controller's own, where the records are.
	Namespace string

	memory memory
}

// Named returns what the AzureIdentities of the cluster say of the identities.
func (o *Observer) Named(ctx context.Context, ids []armid.ID) (map[armid.ID]plan.Naming, error) {
	out := make(map[armid.ID]plan.Naming, len(ids))
	for _, id := range ids {
		if _, known := out[id]; known {
			continue
		}
		objects, err := o.Lookup.Naming(ctx, id)
		if err != nil {
			return nil, err
		}
		out[id] = naming(objects)
	}
	return out, nil
}

func naming(objects []*v1.AzureIdentity) plan.Naming {
	var out plan.Naming
	for _, object := range objects {
		out.Objects = append(out.Objects, kube.Edition(object))
		if principal, err := identity.FromObject(object); err == nil {
			out.ClientIDs = append(out.ClientIDs, principal.ClientID.String())
		}
	}
	slices.Sort(out.Objects)
	slices.Sort(out.ClientIDs)
	out.ClientIDs = slices.Compact(out.ClientIDs)
	return out
}

// Record returns the resource's record. One that does not exist yet has no UID.
func (o *Observer) Record(ctx context.Context, ref compute.Ref) (*v1.AzureIdentityAttachment, error) {
	out := &v1.AzureIdentityAttachment{}
	key := client.ObjectKey{Namespace: o.Namespace, Name: RecordName(ref)}
	err := o.Live.Get(ctx, key, out)
	if apierrors.IsNotFound(err) {
		return &v1.AzureIdentityAttachment{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
			Spec:       v1.AzureIdentityAttachmentSpec{ResourceID: ref.String()},
		}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", ref, err)
	}
	return out, nil
}

// IsRecordAt reports whether the API server itself has the record in that version.
func (o *Observer) IsRecordAt(ctx context.Context, ref compute.Ref, version string) (bool, error) {
	out := &metav1.PartialObjectMetadata{}
	out.SetGroupVersionKind(v1.GroupVersion.WithKind("AzureIdentityAttachment"))
	err := o.Live.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: RecordName(ref)}, out)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the version of the record of %s: %w", ref, err)
	}
	return out.ResourceVersion == version, nil
}

// RecordName returns the name of a resource's AzureIdentityAttachment: the
// resource's own name, to be read, and a hash of its ARM ID, since names repeat
// over resource groups and subscriptions.
func RecordName(ref compute.Ref) string {
	sum := sha256.Sum256([]byte(ref.String()))
	readable := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, ref.ID.Name())
	if len(readable) > 200 {
		readable = readable[:200]
	}
	return strings.Trim(strings.Trim(readable, "-")+"-"+hex.EncodeToString(sum[:5]), "-")
}
