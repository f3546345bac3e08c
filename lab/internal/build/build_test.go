package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckMachine(t *testing.T) {
	for name, c := range map[string]struct {
		missing []string
		want    *Missing
	}{
		"everything is there":                        {},
		"one is missing":                             {missing: []string{"runc"}, want: &Missing{Programs: []string{"runc"}, Packages: []string{"runc"}}},
		"two of one package":                         {missing: []string{"nsenter", "unshare"}, want: &Missing{Programs: []string{"nsenter", "unshare"}, Packages: []string{"util-linux"}}},
		"a program of another name than its package": {missing: []string{"nft"}, want: &Missing{Programs: []string{"nft"}, Packages: []string{"nftables"}}},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkMachine(func(p string) (string, error) {
				if slices.Contains(c.missing, p) {
					return "", errors.New("not found")
				}
				return "/usr/bin/" + p, nil
			})
			got, _ := errors.AsType[*Missing](err)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got != nil && !strings.Contains(got.Error(), "apt-get install "+strings.Join(c.want.Packages, " ")) {
				t.Errorf("%v does not say what to do", got)
			}
		})
	}
}

// tree is a source tree with nothing to build.
func tree(t *testing.T, files ...string) Builder {
	t.Helper()
	root := t.TempDir()
	for _, f := range append(files, "lab/coredns/go.mod", "hack/kubernetes.sh") {
		write(t, filepath.Join(root, f), f)
	}
	write(t, filepath.Join(root, "lab", "kubernetes", "go.mod"), "module x\n\nrequire (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.36.3\n)\n")
	return Builder{Root: root, Progress: func(format string, args ...any) { t.Logf(format, args...) }}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestFindRoot(t *testing.T) {
	b := tree(t, "bin/lab")
	for name, c := range map[string]struct {
		places []string
		found  bool
	}{
		"the root itself":             {[]string{b.Root}, true},
		"a folder below":              {[]string{filepath.Join(b.Root, "lab", "kubernetes")}, true},
		"beside a program named lab":  {[]string{filepath.Join(b.Root, "bin")}, true},
		"the second place":            {[]string{t.TempDir(), b.Root}, true},
		"nowhere":                     {[]string{t.TempDir()}, false},
		"a place that does not exist": {[]string{"/no/such/place"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FindRoot(c.places...)
			if c.found && got != b.Root {
				t.Errorf("got %q, %v", got, err)
			}
			if !c.found && (err == nil || !strings.Contains(err.Error(), "--source")) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestPartsAreBuiltOnce(t *testing.T) {
	b := tree(t)
	built := 0
	p := part{name: "tool", version: "1", dir: b.Programs(), files: []string{"tool"}, build: func(context.Context) error {
		built++
		return errors.Join(os.MkdirAll(b.Programs(), 0o700), os.WriteFile(filepath.Join(b.Programs(), "tool"), nil, 0o600))
	}}
	again := func(want int, why string) {
		t.Helper()
		if err := b.buildOne(t.Context(), []part{p}, "tool"); err != nil {
			t.Fatal(err)
		}
		if built != want {
			t.Errorf("%s: built %d times, want %d", why, built, want)
		}
	}
	again(1, "at first")
	again(1, "nothing changed")
	p.version = "2"
	again(2, "another version")
	if err := os.Remove(filepath.Join(b.Programs(), "tool")); err != nil {
		t.Fatal(err)
	}
	again(3, "its program is gone")
	p.version = ""
	again(4, "one without version")
	again(5, "one without version, again")
}

func TestFailedBuildIsTriedAgain(t *testing.T) {
	b := tree(t)
	fails := true
	p := part{name: "tool", version: "1", build: func(context.Context) error {
		if fails {
			return errors.New("no compiler")
		}
		return nil
	}}
	if err := b.buildOne(t.Context(), []part{p}, "tool"); err == nil || err.Error() != "building tool: no compiler" {
		t.Errorf("got %v", err)
	}
	if b.current(p) {
		t.Error("a failed build counts as done")
	}
	fails = false
	if err := b.buildOne(t.Context(), []part{p}, "tool"); err != nil {
		t.Error(err)
	}
	if err := b.buildOne(t.Context(), []part{p}, "tol"); err == nil || !strings.Contains(err.Error(), "no such part") {
		t.Errorf("got %v", err)
	}
}

func TestNeededPartsExist(t *testing.T) {
	known, err := tree(t).Parts()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range append(Needed(), "helm") {
		if !slices.Contains(known, n) {
			t.Errorf("%s is no part of %v", n, known)
		}
	}
}

func TestHashOf(t *testing.T) {
	b := tree(t, "lab/coredns/go.sum")
	dir := filepath.Join(b.Root, "lab", "coredns")
	first, err := hashOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := hashOf(dir); err != nil || again != first {
		t.Errorf("%s and %s of the same files, %v", first, again, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.sum"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if other, err := hashOf(dir); err != nil || other == first {
		t.Errorf("a change was not seen, %v", err)
	}
	if _, err := hashOf(filepath.Join(b.Root, "missing")); err == nil {
		t.Error("a missing file has a hash")
	}
}

func TestListenKeepsWords(t *testing.T) {
	var told []string
	b := Builder{Progress: func(format string, args ...any) { told = append(told, strings.TrimSpace(fmt.Sprintf(format, args...))) }}
	var out strings.Builder
	for range 250 {
		out.WriteString("github.com/a/b\n")
	}
	out.WriteString("go: downloading github.com/a/b v1\n./x.go:1:2: undefined: y\n")
	if words := b.listen(strings.NewReader(out.String())); words != "./x.go:1:2: undefined: y" {
		t.Errorf("words %q", words)
	}
	if diff := cmp.Diff([]string{"100 packages compiled", "200 packages compiled"}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestImagesArePackedOnce(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "tool")
	a := Archive{Name: "tool", Reference: Repository + "/tool:" + Tag, Path: filepath.Join(dir, "tool.tar")}
	packed := func(why, text string) (string, os.FileInfo) {
		t.Helper()
		if err := os.WriteFile(program, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := pack(a, program)
		if err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		info, err := os.Stat(a.Path)
		if err != nil {
			t.Fatal(err)
		}
		return got.Digest, info
	}
	first, written := packed("at first", "one")
	if digest, again := packed("the same program", "one"); digest != first || !os.SameFile(written, again) {
		t.Errorf("packed again, as %s after %s", digest, first)
	}
	if digest, again := packed("another program", "two"); digest == first || os.SameFile(written, again) {
		t.Error("another program was not packed")
	}
	if err := os.Remove(a.Path); err != nil {
		t.Fatal(err)
	}
	packed("the archive is gone", "two")
}

func TestImagesOfWhatIsThere(t *testing.T) {
	b := tree(t, "cmd/azuresim/main.go", "cmd/demo/main.go", "lab/cmd/pause/main.go")
	if diff := cmp.Diff([]string{"azuresim", "coredns", "demo", "pause"}, b.Buildable()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"mic":  "building image mic: this source tree has no " + filepath.Join(b.Root, "cmd/mic"),
		"nmmi": "building image nmmi: there is none of that name: choose from azuresim, coredns, demo, mic, nmi, pause",
	} {
		if _, err := b.BuildImages(t.Context(), name); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
