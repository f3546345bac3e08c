package kube

import (
	"context"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8sjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	restwatch "k8s.io/client-go/rest/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// TestInterpret: what is told by the first bytes is what all of them tell.
func TestInterpret(t *testing.T) {
	for name, text := range map[string]string{
		"an assignment":                    `{"apiVersion":"aadpodidentity.k8s.io/v1","kind":"AzureAssignedIdentity","metadata":{}}`,
		"one in another order":             `{"kind":"AzureAssignedIdentity","apiVersion":"aadpodidentity.k8s.io/v1"}`,
		"one that is spaced":               `{"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity"}`,
		"one of another version":           `{"apiVersion":"aadpodidentity.k8s.io/v2","kind":"AzureAssignedIdentity","metadata":{}}`,
		"a list":                           `{"apiVersion":"aadpodidentity.k8s.io/v1","items":[{"kind":"AzureIdentity"}],"kind":"AzureAssignedIdentityList"}`,
		"another kind":                     `{"apiVersion":"aadpodidentity.k8s.io/v1","kind":"AzureIdentityBindingList","metadata":{}}`,
		"a kind with an escape":            `{"apiVersion":"aadpodidentity.k8s.io/v1","kind":"Azure\u0049dentity","metadata":{}}`,
		"an empty kind":                    `{"apiVersion":"aadpodidentity.k8s.io/v1","kind":"","metadata":{}}`,
		"its kind alone":                   `{"apiVersion":"aadpodidentity.k8s.io/v1","kind":"AzureIdentity"}`,
		"a failure":                        `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Expired","code":410}`,
		"the bare object of a bookmark":    `{"kind":"AzureAssignedIdentity","apiVersion":"aadpodidentity.k8s.io/v1","metadata":{"resourceVersion":"7"}}`,
		"nothing":                          ``,
		"what is no JSON":                  `{"apiVersion"`,
		"a version that cannot be a group": `{"apiVersion":"a/b/c","kind":"AzureAssignedIdentity"}`,
	} {
		t.Run(name, func(t *testing.T) {
			want, errWant := k8sjson.SimpleMetaFactory{}.Interpret([]byte(text))
			got, err := newHead().Interpret([]byte(text))
			if (err == nil) != (errWant == nil) {
				t.Fatalf("got error %v, want %v", err, errWant)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// assigned is an assignment with something in each part.
func assigned(name string) *v1.AzureAssignedIdentity {
	return &v1.AzureAssignedIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{v1.NodeNameLabel: "node"}},
		Spec: v1.AzureAssignedIdentitySpec{
			Pod: "pod", PodNamespace: "apps", NodeName: "node",
			AzureIdentityRef: &v1.AzureIdentity{
				TypeMeta: metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureIdentity"}, ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "app"}, Spec: v1.AzureIdentitySpec{ResourceID: "/subscriptions/s", ClientID: "c"},
			},
		},
		Status: v1.AzureAssignedIdentityStatus{Status: v1.AssignedIDCreated},
	}
}

// TestInformers: by the informers of our own kinds, from a real API server, comes
// what a usual client reads: those of before, and what is made, changed and deleted.
func TestInformers(t *testing.T) {
	config, ctx := env.Start(t), t.Context()
	scheme, err := NewScheme()
	must(t, err)
	usual, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	informers, err := Informers(config, scheme)
	must(t, err)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: name} }
	for kind, c := range map[string]struct {
		make   func(name string) client.Object
		change string // a merge patch
	}{
		"assignments": {func(name string) client.Object { return assigned(name) }, `{"status":{"status":"Assigned"}}`},
		"identities": {func(name string) client.Object {
			return &v1.AzureIdentity{ObjectMeta: meta(name), Spec: v1.AzureIdentitySpec{ResourceID: "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i", ClientID: "bbbbbbbb-0000-4000-8000-000000000001"}}
		}, `{"spec":{"clientID":"bbbbbbbb-0000-4000-8000-000000000002"}}`},
		"bindings": {func(name string) client.Object {
			return &v1.AzureIdentityBinding{ObjectMeta: meta(name), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "app", Selector: "app"}}
		}, `{"spec":{"weight":7}}`},
	} {
		t.Run(kind, func(t *testing.T) {
			read := func(object client.Object) client.Object {
				must(t, usual.Get(ctx, client.ObjectKeyFromObject(object), object))
				return object
			}
			before := c.make("before")
			must(t, usual.Create(ctx, before))
			wants := hear(ctx, t, informers(nil, c.make(""), 0, toolscache.Indexers{}))
			wants(toolscache.Added, read(before))
			made := c.make("made")
			must(t, usual.Create(ctx, made))
			wants(toolscache.Added, read(made))
			must(t, usual.Patch(ctx, made, client.RawPatch(types.MergePatchType, []byte(c.change))))
			last := read(made)
			wants(toolscache.Updated, last)
			must(t, usual.Delete(ctx, made))
			wants(toolscache.Deleted, last)
		})
	}
}

// hear runs the informer; what it returns waits for what comes next. Of a deleted
// object only the version may be another.
func hear(ctx context.Context, t *testing.T, informer toolscache.SharedIndexInformer) (wants func(toolscache.DeltaType, client.Object)) {
	t.Helper()
	heard := make(chan toolscache.Delta, 10)
	_, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { heard <- toolscache.Delta{Type: toolscache.Added, Object: o} },
		UpdateFunc: func(_, o any) { heard <- toolscache.Delta{Type: toolscache.Updated, Object: o} },
		DeleteFunc: func(o any) { heard <- toolscache.Delta{Type: toolscache.Deleted, Object: o} },
	})
	must(t, err)
	go informer.RunWithContext(ctx)
	return func(kind toolscache.DeltaType, want client.Object) {
		t.Helper()
		select {
		case got := <-heard:
			if got.Type != kind {
				t.Fatalf("it was %s, want %s", got.Type, kind)
			}
			ignored := cmp.FilterPath(func(p cmp.Path) bool { return kind == toolscache.Deleted && p.String() == "ObjectMeta.ResourceVersion" }, cmp.Ignore())
			if diff := cmp.Diff(want, got.Object, ignored); diff != "" {
				t.Fatalf("%s (-read +heard):\n%s", kind, diff)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nothing is heard of what was %s", kind)
		}
	}
}

// TestExpired: a watch that cannot be had says why, so that all is listed again.
func TestExpired(t *testing.T) {
	scheme, err := NewScheme()
	must(t, err)
	api, err := ownAPI(env.Start(t), scheme)
	must(t, err)
	listed := everywhere(api, resourceOfAll(&v1.AzureAssignedIdentity{}), runtime.NewParameterCodec(scheme))
	lw, ok := listed.(toolscache.ListerWatcherWithContext)
	if !ok {
		t.Fatalf("%T takes no context", listed)
	}
	watched, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	must(t, err)
	defer watched.Stop()
	event := <-watched.ResultChan()
	if status, ok := event.Object.(*metav1.Status); event.Type != watch.Error || !ok || status.Code != 410 {
		t.Errorf("got %s %v, want that it is expired", event.Type, event.Object)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// again reads a text again and again.
type again struct {
	text []byte
	at   int
}

func (a *again) Read(into []byte) (int, error) {
	n := copy(into, a.text[a.at:])
	a.at = (a.at + n) % len(a.text)
	return n, nil
}

// BenchmarkEvent reads an event of a watch, as the controller does and as a usual
// client does.
func BenchmarkEvent(b *testing.B) {
	scheme, err := NewScheme()
	if err != nil {
		b.Fatal(err)
	}
	object := assigned("one")
	object.TypeMeta = metav1.TypeMeta{APIVersion: v1.GroupVersion.String(), Kind: "AzureAssignedIdentity"}
	unordered, err := json.Marshal(object)
	if err != nil {
		b.Fatal(err)
	}
	var ordered map[string]any // as the API server has it
	if err := json.Unmarshal(unordered, &ordered); err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(ordered)
	if err != nil {
		b.Fatal(err)
	}
	event, err := json.Marshal(metav1.WatchEvent{Type: string(watch.Added), Object: runtime.RawExtension{Raw: text}})
	if err != nil {
		b.Fatal(err)
	}
	event = append(event, '\n')
	own, plain := reader(scheme), k8sjson.NewSerializerWithOptions(k8sjson.DefaultMetaFactory, scheme, scheme, k8sjson.SerializerOptions{})
	for name, by := range map[string]runtime.SerializerInfo{
		"controller": own,
		"usual":      {Serializer: plain, StreamSerializer: &runtime.StreamSerializerInfo{Serializer: plain, Framer: k8sjson.Framer}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			endless := io.NopCloser(&again{text: event})
			decoder := restwatch.NewDecoder(streaming.NewDecoder(by.StreamSerializer.NewFrameReader(endless), by.StreamSerializer.Serializer), by.Serializer)
			for b.Loop() {
				if _, _, err := decoder.Decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
