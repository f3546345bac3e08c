package image_test

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/image"
)

const reference = "lab.local/test/tool:dev"

func write(t *testing.T, text string, changed time.Time) (string, v1.Hash) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "tool")
	if err := errors.Join(os.WriteFile(program, []byte(text), 0o700), os.Chtimes(program, changed, changed)); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "tool.tar")
	digest, err := image.Write(archive, image.Spec{Reference: reference, Program: program, Architecture: "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	return archive, digest
}

func TestSameProgramSameImage(t *testing.T) {
	first, a := write(t, "program", time.Unix(1, 0))
	second, b := write(t, "program", time.Unix(1e9, 0))
	_, c := write(t, "another", time.Unix(1, 0))
	if a != b {
		t.Errorf("digests %s and %s of one program", a, b)
	}
	if a == c {
		t.Error("two programs have one digest")
	}
	one, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if string(one) != string(two) {
		t.Error("the archives differ")
	}
}

func TestArchiveHoldsTheImage(t *testing.T) {
	archive, digest := write(t, "program", time.Now())
	tag, err := name.NewTag(reference)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(archive + ".next"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something is left beside the archive")
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != "arm64" || config.OS != "linux" || !config.Created.Equal(time.Unix(0, 0)) {
		t.Errorf("%s/%s of %s", config.OS, config.Architecture, config.Created)
	}
	if diff := cmp.Diff([]string{"/tool"}, config.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if digest == (v1.Hash{}) {
		t.Error("no digest")
	}
	want := map[string]string{"etc/": "0755", "etc/group": "0644", "etc/passwd": "0644", "tmp/": "1777", "tool": "0755"}
	if diff := cmp.Diff(want, contents(t, img)); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
}

// contents returns the modes of the files of an image of one layer.
func contents(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() // only read
	found := map[string]string{}
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = octal(h.Mode)
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%s belongs to %d:%d of %s", h.Name, h.Uid, h.Gid, h.ModTime)
		}
	}
}

func octal(mode int64) string {
	const digits = "01234567"
	return string([]byte{digits[mode>>9&7], digits[mode>>6&7], digits[mode>>3&7], digits[mode&7]})
}

func TestWriteRefuses(t *testing.T) {
	for name, c := range map[string]struct{ spec image.Spec }{
		"a reference without tag":       {image.Spec{Reference: "lab.local/test/tool", Program: "/bin/true"}},
		"a reference that is none":      {image.Spec{Reference: "Not A Name:dev", Program: "/bin/true"}},
		"a program that does not exist": {image.Spec{Reference: reference, Program: "/no/such/program"}},
	} {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "x.tar")
			if _, err := image.Write(archive, c.spec); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(archive); !errors.Is(err, fs.ErrNotExist) {
				t.Error("an archive was written")
			}
		})
	}
}
