// Package image packs a static program into a container image, as an archive
// that docker and containerd load. No daemon and no registry takes part.
//
// The same program gives the same digest, whenever and wherever it is packed. It
// must not learn what the program does.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec says what goes into an image.
type Spec struct {
	// Reference is the full name with a tag, such as lab.local/x/mic:dev.
	Reference string
	// Program is the path of a static program; it becomes the entrypoint.
	Program string
	// Architecture of the program, as Go names it.
	Architecture string
}

// Write packs an image into an archive and returns its digest. The archive
// appears whole or not at all.
func Write(archive string, s Spec) (v1.Hash, error) {
	tag, err := name.NewTag(s.Reference, name.StrictValidation)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("naming the image: %w", err)
	}
	img, err := build(s)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("packing %s: %w", s.Program, err)
	}
	next := archive + ".next"
	if err := tarball.WriteToFile(next, tag, img); err != nil {
		return v1.Hash{}, fmt.Errorf("writing %s: %w", archive, err)
	}
	if err := os.Rename(next, archive); err != nil {
		return v1.Hash{}, fmt.Errorf("writing %s: %w", archive, err)
	}
	return img.Digest()
}

func build(s Spec) (v1.Image, error) {
	program, err := os.ReadFile(s.Program)
	if err != nil {
		return nil, err
	}
	entrypoint := "/" + filepath.Base(s.Program)
	content, err := layer(entrypoint, program)
	if err != nil {
		return nil, err
	}
	packed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, packed)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", s.Architecture
	file.Created = v1.Time{Time: epoch()}
	file.Config = v1.Config{
		Entrypoint: []string{entrypoint}, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	return mutate.ConfigFile(img, file)
}

// layer holds the program, a /tmp, and who root and nobody are.
func layer(path string, program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		mode int64
		text []byte
	}{
		{"etc/", 0o755, nil},
		{"etc/group", 0o644, []byte("root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n")},
		{"etc/passwd", 0o644, []byte("root:x:0:0::/:/sbin/nologin\nnobody:x:65534:65534::/:/sbin/nologin\nnonroot:x:65532:65532::/:/sbin/nologin\n")},
		{"tmp/", 0o1777, nil},
		{path[1:], 0o755, program},
	} {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), ModTime: epoch(), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if f.text == nil {
			header.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func epoch() time.Time { return time.Unix(0, 0).UTC() }
