package kube

import (
	"bytes"
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// NewInformer makes an informer.
type NewInformer func(toolscache.ListerWatcher, runtime.Object, time.Duration, toolscache.Indexers) toolscache.SharedIndexInformer

// Informers returns what makes the informers of a cache. They are client-go's; the
// one of AzureAssignedIdentities, which change with each pod, reads less often what
// the API server sends once.
func Informers(config *rest.Config, scheme *runtime.Scheme) (NewInformer, error) {
	assignments, err := assignmentsOf(config, scheme)
	if err != nil {
		return nil, err
	}
	return func(listed toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
		if _, ok := object.(*v1.AzureAssignedIdentity); ok {
			listed = assignments
		}
		return toolscache.NewSharedIndexInformer(listed, object, resync, indexers)
	}, nil
}

// assignmentsOf lists and watches the assignments of all namespaces.
func assignmentsOf(config *rest.Config, scheme *runtime.Scheme) (toolscache.ListerWatcher, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.APIPath = &v1.GroupVersion, "/apis"
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, ""
	config.NegotiatedSerializer = codec{runtime.NewSimpleNegotiatedSerializer(reader(scheme))}
	api, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to watch assignments: %w", err)
	}
	parameters := runtime.NewParameterCodec(scheme)
	return &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.Get().Resource(assignmentResource).VersionedParams(&options, parameters).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return api.Get().Resource(assignmentResource).VersionedParams(&options, parameters).Watch(ctx)
		},
	}, nil
}

// assignmentResource is where the API server has the AzureAssignedIdentities.
const assignmentResource = "azureassignedidentities"

// codec leaves objects as they come, and without their kind, as typed clients do.
type codec struct{ runtime.NegotiatedSerializer }

// DecoderToVersion implements [runtime.NegotiatedSerializer].
func (codec) DecoderToVersion(decoder runtime.Decoder, _ runtime.GroupVersioner) runtime.Decoder {
	return runtime.WithoutVersionDecoder{Decoder: decoder}
}

func reader(scheme *runtime.Scheme) runtime.SerializerInfo {
	text := json.NewSerializerWithOptions(newHead("AzureAssignedIdentity"), scheme, scheme, json.SerializerOptions{})
	return runtime.SerializerInfo{
		MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true, Serializer: text,
		StreamSerializer: &runtime.StreamSerializerInfo{EncodesAsText: true, Serializer: events{text}, Framer: lines{json.Framer}},
	}
}

// head tells of which kind an object is by its first bytes, as the API server writes
// them. Where it writes something else, all of it is read for that, as usual.
type head struct {
	json.SimpleMetaFactory

	kind   schema.GroupVersionKind
	prefix []byte
}

func newHead(kind string) head {
	return head{
		kind:   v1.GroupVersion.WithKind(kind),
		prefix: fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,`, v1.GroupVersion, kind),
	}
}

// Interpret implements [json.MetaFactory].
func (h head) Interpret(data []byte) (*schema.GroupVersionKind, error) {
	if bytes.HasPrefix(data, h.prefix) {
		return new(h.kind), nil
	}
	return h.SimpleMetaFactory.Interpret(data) //nolint:wrapcheck // it stands in its place
}
