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

// Informers returns what makes the informers of a cache. They are client-go's; those
// of our own kinds, which come as JSON, read less often what the API server sends once.
func Informers(config *rest.Config, scheme *runtime.Scheme) (NewInformer, error) {
	api, err := ownAPI(config, scheme)
	if err != nil {
		return nil, err
	}
	parameters := runtime.NewParameterCodec(scheme)
	return func(listed toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
		if resource := resourceOfAll(object); resource != "" {
			listed = everywhere(api, resource, parameters)
		}
		return toolscache.NewSharedIndexInformer(listed, object, resync, indexers)
	}, nil
}

// resourceOfAll is where the API server has the objects of a kind of ours that is
// cached for all namespaces; empty for other kinds.
func resourceOfAll(object runtime.Object) string {
	switch object.(type) {
	case *v1.AzureAssignedIdentity:
		return "azureassignedidentities"
	case *v1.AzureIdentity:
		return "azureidentities"
	case *v1.AzureIdentityBinding:
		return "azureidentitybindings"
	}
	return ""
}

func ownAPI(config *rest.Config, scheme *runtime.Scheme) (rest.Interface, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.APIPath = &v1.GroupVersion, "/apis"
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, ""
	config.NegotiatedSerializer = codec{runtime.NewSimpleNegotiatedSerializer(reader(scheme))}
	api, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("preparing to watch %s: %w", v1.GroupVersion, err)
	}
	return api, nil
}

// everywhere lists and watches a resource in all namespaces.
func everywhere(api rest.Interface, resource string, parameters runtime.ParameterCodec) toolscache.ListerWatcher {
	return &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return api.Get().Resource(resource).VersionedParams(&options, parameters).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return api.Get().Resource(resource).VersionedParams(&options, parameters).Watch(ctx)
		},
	}
}

// codec leaves objects as they come, and without their kind, as typed clients do.
type codec struct{ runtime.NegotiatedSerializer }

// DecoderToVersion implements [runtime.NegotiatedSerializer].
func (codec) DecoderToVersion(decoder runtime.Decoder, _ runtime.GroupVersioner) runtime.Decoder {
	return runtime.WithoutVersionDecoder{Decoder: decoder}
}

func reader(scheme *runtime.Scheme) runtime.SerializerInfo {
	text := json.NewSerializerWithOptions(newHead(), scheme, scheme, json.SerializerOptions{})
	return runtime.SerializerInfo{
		MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true, Serializer: text,
		StreamSerializer: &runtime.StreamSerializerInfo{EncodesAsText: true, Serializer: events{text}, Framer: lines{json.Framer}},
	}
}

// head tells of which kind an object of ours is by its first bytes, as the API server
// writes them. Where it writes something else, all of it is read for that, as usual.
type head struct {
	json.SimpleMetaFactory

	prefix []byte
}

func newHead() head {
	return head{prefix: fmt.Appendf(nil, `{"apiVersion":%q,"kind":"`, v1.GroupVersion)}
}

// Interpret implements [json.MetaFactory].
func (h head) Interpret(data []byte) (*schema.GroupVersionKind, error) {
	if rest, ok := bytes.CutPrefix(data, h.prefix); ok {
		kind, _, ended := bytes.Cut(rest, []byte(`","`))
		if ended && !bytes.ContainsFunc(kind, notLetter) {
			return new(v1.GroupVersion.WithKind(string(kind))), nil
		}
	}
	return h.SimpleMetaFactory.Interpret(data) //nolint:wrapcheck // it stands in its place
}

func notLetter(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }
