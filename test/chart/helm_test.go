package chart_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// release and namespace are where these tests render to.
const (
	release   = "rel"
	namespace = "pod-identity"
)

// version returns a field of Chart.yaml.
func version(field string) string {
	text, err := os.ReadFile(filepath.Join(chart(), "Chart.yaml"))
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	panic("Chart.yaml has no " + field)
}

func chart() string { return filepath.Join(env.Root(), "charts", "aad-pod-identity") }

// helm runs the real helm with a home of its own.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program := filepath.Join(env.Root(), "bin", "helm")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make helm", err)
	}
	home := t.TempDir()
	command := exec.CommandContext(t.Context(), program, args...)
	command.Env = []string{"HOME=" + home, "HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home}
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err, complaints.String(), out.String())
	}
	return out.String(), nil
}

// rendering is what the chart makes of some values.
type rendering []*unstructured.Unstructured

// render renders the chart with values, each as helm's --set-json takes it.
func render(t *testing.T, values ...string) rendering {
	t.Helper()
	out, err := template(t, values...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func template(t *testing.T, values ...string) (string, error) {
	t.Helper()
	args := []string{"template", release, chart(), "--namespace=" + namespace}
	for _, value := range values {
		args = append(args, "--set-json="+value)
	}
	return helm(t, args...)
}

func parse(t *testing.T, manifests string) rendering {
	t.Helper()
	var out rendering
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096)
	for {
		object := &unstructured.Unstructured{}
		switch err := decoder.Decode(object); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatalf("reading manifests: %v\n%s", err, manifests)
		case len(object.Object) > 0:
			out = append(out, object)
		}
	}
}

func (r rendering) find(kind, name string) *unstructured.Unstructured {
	for _, object := range r {
		if object.GetKind() == kind && object.GetName() == name {
			return object
		}
	}
	return nil
}

// names lists the objects of a kind as namespace/name.
func (r rendering) names(kind string) []string {
	var out []string
	for _, object := range r {
		if object.GetKind() == kind {
			out = append(out, object.GetNamespace()+"/"+object.GetName())
		}
	}
	slices.Sort(out)
	return out
}

// as returns the named object as its Go type, or nil.
func as[T any](r rendering, kind, name string) *T {
	object := r.find(kind, name)
	if object == nil {
		return nil
	}
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, out, true); err != nil {
		panic(fmt.Sprintf("%s %s: %v", kind, name, err))
	}
	return out
}

// workload returns the pod template of a component, or nil.
func (r rendering) workload(component string) *corev1.PodTemplateSpec {
	if mic := as[appsv1.Deployment](r, "Deployment", "aad-pod-identity-mic"); component == "mic" && mic != nil {
		return &mic.Spec.Template
	}
	if nmi := as[appsv1.DaemonSet](r, "DaemonSet", "aad-pod-identity-nmi"); component == "nmi" && nmi != nil {
		return &nmi.Spec.Template
	}
	if job := as[batchv1.Job](r, "Job", "aad-pod-identity-nmi-uninstall"); component == "uninstall" && job != nil {
		return &job.Spec.Template
	}
	return nil
}

func (r rendering) container(component string) corev1.Container {
	return r.workload(component).Spec.Containers[0]
}

// flag returns the value of a component's flag; nil if it is not given.
func (r rendering) flag(component, name string) any {
	for _, arg := range r.container(component).Args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return value
		}
	}
	return nil
}

// variable returns a component's environment variable; nil if it is not set.
func (r rendering) variable(component, name string) any {
	for _, variable := range r.container(component).Env {
		if variable.Name == name {
			return variable.Value
		}
	}
	return nil
}

func TestLint(t *testing.T) {
	for _, mode := range []string{"standard", "managed"} {
		if _, err := helm(t, "lint", "--strict", chart(), "--set=operationMode="+mode); err != nil {
			t.Error(err)
		}
	}
}
