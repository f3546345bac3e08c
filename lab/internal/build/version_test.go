package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseVersion(t *testing.T) {
	const noVersion, tooOld = "is no version of Kubernetes: want vX.Y.Z, such as v1.30.0", "is too old: want v1.30.0 or newer"
	for name, c := range map[string]struct {
		text  string
		minor int
		want  string // of an error
	}{
		"a version":                   {text: "v1.35.4", minor: 35},
		"the oldest":                  {text: "v1.30.0", minor: 30},
		"a patch of two digits":       {text: "v1.30.14", minor: 30},
		"one that may come":           {text: "v1.40.0", minor: 40},
		"the last that is too old":    {text: "v1.29.15", want: "Kubernetes v1.29.15 " + tooOld},
		"much too old":                {text: "v1.9.0", want: "Kubernetes v1.9.0 " + tooOld},
		"nothing":                     {text: "", want: `"" ` + noVersion},
		"no v":                        {text: "1.35.4", want: `"1.35.4" ` + noVersion},
		"no patch":                    {text: "v1.35", want: `"v1.35" ` + noVersion},
		"a part too many":             {text: "v1.35.4.1", want: `"v1.35.4.1" ` + noVersion},
		"a release candidate":         {text: "v1.36.0-rc.1", want: `"v1.36.0-rc.1" ` + noVersion},
		"with build metadata":         {text: "v1.35.4+k3s1", want: `"v1.35.4+k3s1" ` + noVersion},
		"another major version":       {text: "v2.0.0", want: `"v2.0.0" ` + noVersion},
		"a leading zero":              {text: "v1.35.04", want: `"v1.35.04" ` + noVersion},
		"a number of a million years": {text: "v1.99999999999999999999.0", want: `"v1.99999999999999999999.0" ` + noVersion},
		"a path":                      {text: "v1.35.4/../..", want: `"v1.35.4/../.." ` + noVersion},
		"a line behind it":            {text: "v1.35.4\n", want: `"v1.35.4\n" ` + noVersion},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseVersion(c.text)
			if c.want != "" {
				if err == nil || err.Error() != c.want || got != (Version{}) {
					t.Errorf("got %s, %v; want %s", got, err, c.want)
				}
				return
			}
			if err != nil || got.String() != c.text || got.Minor() != c.minor {
				t.Errorf("got %s of minor version %d, %v", got, got.Minor(), err)
			}
		})
	}
}

func version(t *testing.T, text string) Version {
	t.Helper()
	v, err := ParseVersion(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPinnedKubernetes(t *testing.T) {
	for name, c := range map[string]struct{ mod, want, err string }{
		"in a block":                     {mod: "require (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.36.3\n)\n", want: "v1.36.3"},
		"in a line":                      {mod: "require k8s.io/kubernetes v1.31.0 // why\n", want: "v1.31.0"},
		"not that of a module like it":   {mod: "require k8s.io/kubernetes-x v1.31.0\n", err: "requires no k8s.io/kubernetes"},
		"not the source of a replaced":   {mod: "replace k8s.io/kubernetes => ../kubernetes\n", err: "requires no k8s.io/kubernetes"},
		"a version that no lab can run":  {mod: "require k8s.io/kubernetes v1.13.0\n", err: "Kubernetes v1.13.0 is too old"},
		"a version that is no release":   {mod: "require k8s.io/kubernetes v1.37.0-alpha.1\n", err: "is no version of Kubernetes"},
		"a file that has nothing at all": {err: "requires no k8s.io/kubernetes"},
	} {
		t.Run(name, func(t *testing.T) {
			b := tree(t)
			write(t, filepath.Join(b.Root, "lab", "kubernetes", "go.mod"), c.mod)
			got, err := b.PinnedKubernetes()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %s, %v; want %s", got, err, c.err)
				}
				return
			}
			if err != nil || got.String() != c.want {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
	if _, err := (Builder{Root: t.TempDir()}).PinnedKubernetes(); err == nil || !strings.HasPrefix(err.Error(), "reading which Kubernetes is pinned: open ") {
		t.Errorf("without a file: %v", err)
	}
}

func TestEachVersionHasItsPlace(t *testing.T) {
	b := tree(t)
	type places struct{ Version, Folder, Stamp, Args string }
	for name, c := range map[string]struct {
		version Version
		want    places
	}{
		"none is the pinned one": {Version{}, places{"v1.36.3", "kubernetes", "kubernetes", "all"}},
		"the pinned one by name": {version(t, "v1.36.3"), places{"v1.36.3", "kubernetes", "kubernetes", "all"}},
		"an older one":           {version(t, "v1.35.4"), places{"v1.35.4", "kubernetes-v1.35.4", "kubernetes-v1.35.4", "all v1.35.4"}},
		"another patch":          {version(t, "v1.36.1"), places{"v1.36.1", "kubernetes-v1.36.1", "kubernetes-v1.36.1", "all v1.36.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			other, err := b.WithKubernetes(c.version)
			if err != nil {
				t.Fatal(err)
			}
			built, err := other.KubernetesVersion()
			if err != nil {
				t.Fatal(err)
			}
			parts, err := other.parts()
			if err != nil {
				t.Fatal(err)
			}
			got := places{
				built.String(), strings.TrimPrefix(parts[0].dir, filepath.Join(b.Root, ".cache")+"/"),
				filepath.Base(other.stampFile(parts[0])), strings.Join(other.kubernetesArgs(), " "),
			}
			if diff := cmp.Diff(c.want, got); diff != "" || parts[0].dir != other.Kubernetes() {
				t.Errorf("folder %s (-want +got):\n%s", other.Kubernetes(), diff)
			}
			if back, err := other.WithKubernetes(Version{}); err != nil || back.Kubernetes() != b.Kubernetes() {
				t.Errorf("back to the pinned one: %s, %v", back.Kubernetes(), err)
			}
		})
	}
	if _, err := (Builder{Root: t.TempDir()}).WithKubernetes(version(t, "v1.35.4")); err == nil {
		t.Error("a folder without lab/kubernetes/go.mod is taken for a source tree")
	}
}

// fakeGo knows one version of Kubernetes, and what it builds is its own name. It
// counts what it builds.
const fakeGo = `#!/bin/sh
here=$(dirname "$0")
case "$1 $*" in
"list "*k8s.io/kubernetes@v1.35.4) echo "$here/kubernetes.mod" ;;
"list "*) echo "go: no such version" >&2; exit 1 ;;
"build "*) echo "$GOFLAGS" >> "$here/built"
	while [ "$1" != -o ]; do shift; done
	echo "$*" > "$2" && chmod +x "$2" ;;
esac
`

const kubernetesMod = `module k8s.io/kubernetes

go 1.25.0

godebug default=go1.25

require (
	github.com/spf13/cobra v1.10.0
	k8s.io/api v0.0.0
	k8s.io/klog/v2 v2.130.1
	k8s.io/kubectl v0.0.0
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/kubectl => ./staging/src/k8s.io/kubectl
)
`

// scriptTree is a source tree with the real hack/kubernetes.sh, and a go that
// builds nothing before others on the PATH.
func scriptTree(t *testing.T) (Builder, string) {
	t.Helper()
	b, bin := tree(t, "lab/kubernetes/main.go", "lab/kubernetes/go.sum"), t.TempDir()
	script, err := os.ReadFile("../../../hack/kubernetes.sh")
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{filepath.Join(b.Root, "hack", "kubernetes.sh"): string(script), filepath.Join(bin, "go"): fakeGo}
	for path, text := range programs {
		write(t, path, text)
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(bin, "kubernetes.mod"), kubernetesMod)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return b, bin
}

func TestScriptBuildsAnotherVersion(t *testing.T) {
	b, bin := scriptTree(t)
	b, err := b.WithKubernetes(version(t, "v1.35.4"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is left to do
		if err := b.kubernetes(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	want := "module kubernetes\ngo 1.25.0\nrequire k8s.io/kubernetes v1.35.4\n" +
		"replace k8s.io/api => k8s.io/api v0.35.4\nreplace k8s.io/kubectl => k8s.io/kubectl v0.35.4\n"
	if diff := cmp.Diff(want, read(filepath.Join(b.Kubernetes(), "module", "go.mod"))); diff != "" {
		t.Errorf("go.mod (-want +got):\n%s", diff)
	}
	if got := read(filepath.Join(b.Kubernetes(), "module", "main.go")); got != "lab/kubernetes/main.go" {
		t.Errorf("main.go is %q", got)
	}
	if got := read(filepath.Join(bin, "built")); got != "-buildvcs=false -mod=mod\n" {
		t.Errorf("built with the flags %q, want once", got)
	}
	program := read(filepath.Join(b.Kubernetes(), "kubelet"))
	for _, flag := range []string{"gitVersion=v1.35.4 ", "gitMinor=35 "} {
		if !strings.Contains(program, "k8s.io/component-base/version."+flag) {
			t.Errorf("kubelet is built by %s: want %s", program, flag)
		}
	}
	if _, err := os.Stat(filepath.Join(b.Root, ".cache", "kubernetes")); !os.IsNotExist(err) {
		t.Errorf("the pinned version was built as well: %v", err)
	}
}

func TestScriptBuildsThePinnedVersionInItsModule(t *testing.T) {
	b, bin := scriptTree(t)
	if err := b.kubernetes(t.Context()); err != nil {
		t.Fatal(err)
	}
	built, err := os.ReadFile(filepath.Join(bin, "built"))
	if err != nil || string(built) != "-buildvcs=false\n" {
		t.Errorf("built with the flags %q, %v", built, err)
	}
	if entries, err := filepath.Glob(filepath.Join(b.Root, ".cache", "kubernetes*")); err != nil || len(entries) != 1 || entries[0] != b.Kubernetes() {
		t.Errorf("made %v, %v", entries, err)
	}
}

// TestScriptRefuses is for those who call it by hand.
func TestScriptRefuses(t *testing.T) {
	b, _ := scriptTree(t)
	for name, c := range map[string]struct{ version, want string }{
		"a version that is too old": {"v1.29.6", "Kubernetes v1.29.6 is too old: want v1.30.0 or newer\n"},
		"what is no version":        {"1.35.4", "1.35.4 is no version of Kubernetes: want one such as v1.36.3\n"},
		"a release candidate":       {"v1.35.0-rc.0", "v1.35.0-rc.0 is no version of Kubernetes: want one such as v1.36.3\n"},
		"a path":                    {"v1.35.4/..", "v1.35.4/.. is no version of Kubernetes: want one such as v1.36.3\n"},
		"a version that there never was": {"v1.35.99", "go: no such version\nthere is no Kubernetes v1.35.99 to build: " +
			"`go list -m -versions k8s.io/kubernetes` shows which versions there are\n"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), filepath.Join(b.Root, "hack", "kubernetes.sh"), "all", c.version).CombinedOutput()
			if err == nil || string(out) != c.want {
				t.Errorf("got %v, %s; want %s", err, out, c.want)
			}
			if _, err := os.Stat(filepath.Join(b.Root, ".cache")); !os.IsNotExist(err) {
				t.Errorf("it made something: %v", err)
			}
		})
	}
}
