package kube_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// transform returns what the cache does with objects of a kind.
func transform(t *testing.T, kind client.Object) toolscache.TransformFunc {
	t.Helper()
	options, err := kube.Scope("mic")
	if err != nil {
		t.Fatal(err)
	}
	for object, by := range options.ByObject {
		if fmt.Sprintf("%T", object) == fmt.Sprintf("%T", kind) {
			return by.Transform
		}
	}
	t.Fatalf("%T is not cached", kind)
	return nil
}

// TestScopeTrims: a cached object holds what is used, and nothing else.
func TestScopeTrims(t *testing.T) {
	created := metav1.NewTime(time.Unix(1_700_000_000, 0))
	full := metav1.ObjectMeta{
		Namespace: "ns", Name: "n", GenerateName: "g", UID: "u", ResourceVersion: "1", Generation: 2, CreationTimestamp: created,
		Labels:          map[string]string{v1.PodLabel: "x", v1.NodeNameLabel: "node", "app": "web"},
		Annotations:     map[string]string{"big": "value", v1.BehaviorAnnotation: v1.BehaviorNamespaced},
		Finalizers:      []string{"a", "b"},
		OwnerReferences: []metav1.OwnerReference{{Name: "owner"}},
		ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}
	bare := metav1.ObjectMeta{Namespace: "ns", Name: "n", UID: "u", ResourceVersion: "1", Generation: 2, CreationTimestamp: created}
	marked, labelled := bare, bare
	marked.Annotations = map[string]string{v1.BehaviorAnnotation: v1.BehaviorNamespaced}
	labelled.Labels, labelled.Finalizers = map[string]string{v1.NodeNameLabel: "node"}, full.Finalizers
	conditions := []metav1.Condition{{Type: "Ready"}}
	identity := v1.AzureIdentity{ObjectMeta: full, Spec: v1.AzureIdentitySpec{Metadata: &metav1.ObjectMeta{}, ClientID: "c"}, Status: v1.AzureIdentityStatus{AvailableReplicas: 1, Conditions: conditions}}
	binding := v1.AzureIdentityBinding{ObjectMeta: full, Spec: v1.AzureIdentityBindingSpec{Metadata: &metav1.ObjectMeta{}, Selector: "s"}, Status: v1.AzureIdentityBindingStatus{Conditions: conditions}}
	for _, test := range []struct{ in, want client.Object }{
		{
			&corev1.Pod{ObjectMeta: full, Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{{Type: corev1.PodReady}, {Type: corev1.PodScheduled, Message: "x"}}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "n", GenerateName: "g", UID: "u", ResourceVersion: "1", Labels: map[string]string{v1.PodLabel: "x"}}, Spec: corev1.PodSpec{NodeName: "node"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled}}}},
		},
		{
			&corev1.Node{ObjectMeta: full, Spec: corev1.NodeSpec{ProviderID: "p", PodCIDR: "x"}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "1"}, Spec: corev1.NodeSpec{ProviderID: "p"}},
		},
		{&identity, &v1.AzureIdentity{ObjectMeta: marked, Spec: v1.AzureIdentitySpec{ClientID: "c"}, Status: v1.AzureIdentityStatus{Conditions: conditions}}},
		{&binding, &v1.AzureIdentityBinding{ObjectMeta: bare, Spec: v1.AzureIdentityBindingSpec{Selector: "s"}, Status: v1.AzureIdentityBindingStatus{Conditions: conditions}}},
		{
			&v1.AzureAssignedIdentity{
				ObjectMeta: full,
				Spec:       v1.AzureAssignedIdentitySpec{Metadata: &metav1.ObjectMeta{}, AzureIdentityRef: &identity, AzureBindingRef: &binding, Pod: "p", PodNamespace: "ns", NodeName: "node", Replicas: new(int32)},
				Status:     v1.AzureAssignedIdentityStatus{Metadata: &metav1.ObjectMeta{}, Status: "Created", AvailableReplicas: 1, Conditions: conditions},
			},
			&v1.AzureAssignedIdentity{
				ObjectMeta: labelled,
				Spec: v1.AzureAssignedIdentitySpec{
					AzureIdentityRef: &v1.AzureIdentity{ObjectMeta: marked, Spec: v1.AzureIdentitySpec{ClientID: "c"}},
					AzureBindingRef:  &v1.AzureIdentityBinding{ObjectMeta: bare, Spec: v1.AzureIdentityBindingSpec{Selector: "s"}},
					Pod:              "p", PodNamespace: "ns", NodeName: "node",
				},
				Status: v1.AzureAssignedIdentityStatus{Status: "Created", AvailableReplicas: 1, Conditions: conditions},
			},
		},
		{&v1.AzureAssignedIdentity{}, &v1.AzureAssignedIdentity{}},
	} {
		before := test.in.DeepCopyObject()
		got, err := transform(t, test.in)(test.in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%T (-want +got):\n%s", test.in, diff)
		}
		if diff := cmp.Diff(before, test.in); diff != "" {
			t.Errorf("%T was changed:\n%s", test.in, diff)
		}
	}
}

// TestMissedDeletionsPass: the informer's marker of a deletion that it missed is
// no object to trim.
func TestMissedDeletionsPass(t *testing.T) {
	marker := toolscache.DeletedFinalStateUnknown{Key: "ns/n"}
	if got, err := transform(t, &corev1.Pod{})(marker); err != nil || got != any(marker) {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestNothingTrimmedIsWrittenWhole: a cached object lacks what nobody here reads,
// such as its author's annotations, and an Update would take that away. Only
// records, which are read from the API server itself, are updated whole.
func TestNothingTrimmedIsWrittenWhole(t *testing.T) {
	var found []string
	err := filepath.WalkDir("..", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || method.Sel.Name != "Update" {
				return true
			}
			if on, ok := method.X.(*ast.SelectorExpr); ok && strings.EqualFold(on.Sel.Name, "client") {
				found = append(found, filepath.ToSlash(name))
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"../attachment/apply/apply.go"}; !slices.Equal(found, want) {
		t.Errorf("objects are updated whole in %v, want %v only: patch the difference, or read the object from the API server itself", found, want)
	}
}
