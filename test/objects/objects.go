// Package objects applies manifests to an API server and waits for what becomes
// of them, for the end-to-end tests and the demo.
//
// It must not know what any test is about.
package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// Apply creates every object of a manifest, with strict validation, so that a
// misspelled field is an error; but not those of the kinds in except. Objects that
// exist already are left alone.
func Apply(ctx context.Context, kube client.Client, manifest string, except ...string) error {
	strict := client.WithFieldValidation(kube, metav1.FieldValidationStrict)
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a manifest: %w", err)
		}
		if len(object.Object) == 0 || slices.Contains(except, object.GetKind()) {
			continue
		}
		if err := strict.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

// Edit changes an object on top of what the server has.
func Edit[T client.Object](ctx context.Context, kube client.Client, object T, change func(T)) error {
	if err := kube.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
		return fmt.Errorf("reading what to edit: %w", err)
	}
	before, ok := object.DeepCopyObject().(client.Object)
	if !ok {
		return fmt.Errorf("%T is no object", object)
	}
	change(object)
	if err := kube.Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("editing: %w", err)
	}
	return nil
}

// Await watches until an object of the list satisfies want, and returns it. When
// ctx ends first, the error shows the last object seen.
func Await[T client.Object](ctx context.Context, kube client.WithWatch, list client.ObjectList, want func(T) bool, options ...client.ListOption) (T, error) {
	var last T
	watcher, err := kube.Watch(ctx, list, options...)
	if err != nil {
		return last, fmt.Errorf("watching: %w", err)
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		object, ok := event.Object.(T)
		if !ok || event.Type == watch.Deleted {
			continue
		}
		last = object
		if want(object) {
			return object, nil
		}
	}
	return last, fmt.Errorf("never seen; the last object was %+v: %w", last, context.Cause(ctx))
}

// HasCondition reports whether there is a condition of the kind with the reason,
// and with words.
func HasCondition(conditions []metav1.Condition, kind string, reason v1.Reason) bool {
	return slices.ContainsFunc(conditions, func(c metav1.Condition) bool {
		return c.Type == kind && c.Reason == string(reason) && c.Message != ""
	})
}

// AwaitList lists, and lists again after each event, until the list is as want
// says. When ctx ends first, the error shows the last list seen.
func AwaitList[L client.ObjectList](ctx context.Context, kube client.WithWatch, list L, want func(L) bool, options ...client.ListOption) error {
	for {
		if err := kube.List(ctx, list, options...); err != nil {
			return fmt.Errorf("listing: %w", err)
		}
		if want(list) {
			return nil
		}
		watcher, err := kube.Watch(ctx, list, append(options, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.GetResourceVersion()}})...)
		if err != nil {
			return fmt.Errorf("watching: %w", err)
		}
		select {
		case <-watcher.ResultChan():
			watcher.Stop()
		case <-ctx.Done():
			watcher.Stop()
			return fmt.Errorf("never seen; the last list was %+v: %w", list, context.Cause(ctx))
		}
	}
}
